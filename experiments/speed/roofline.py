"""The least time that each stage of an answer takes on a chip, from its published rates. Computed, never measured.

A stage is done no sooner than its products at the chip's peak, nor than its weights, keys and values pass from memory:
the larger of the two. What a stage hands to the next, and what chips tell each other, counts nothing, so these are
bounds from below. Nothing overlaps between stages.

Axis letters as in `experiments.metrics.costs`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.metrics import costs as floors
from experiments.speed.targets import Chip
from models.engine.plan import Schedule, tokens_by_layer
from models.families.llava import LlavaConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of the prefill, or a step of decoding.

    Attributes:
      name: for people.
      flops: floating-point operations, of all rows.
      weights: bytes of weights that are read.
      rows: bytes that are read for all rows together.
    """

    name: str
    flops: float
    weights: float
    rows: float = 0.0

    def seconds(self, chip: Chip, mesh: tuple[int, int]) -> tuple[float, float]:
        """At least, on a mesh of data x model chips: by its products, and by its bytes."""
        data, model = mesh
        moved = self.weights / model + self.rows / (data * model)
        return self.flops / (data * model) / chip.flops, moved / chip.bandwidth


def _tower_weights(config: LlavaConfig) -> int:
    """Numbers: blocks up to the deepest feature layer, patches, positions, projector; matrices alone."""
    vision, out = config.vision, config.text.hidden_size
    width = vision.hidden_size
    blocks = max(config.feature_layers) * (4 * width**2 + 2 * width * vision.intermediate_size)
    embeddings = (vision.num_channels * vision.patch_size**2 + vision.num_patches + 1) * width
    return blocks + embeddings + width * len(config.feature_layers) * out + out**2


def _layer(config: LlavaConfig, tokens: int, queries: int) -> float:
    """Products of one decoder layer over `tokens`, of which `queries` are asked for; a query sees no key behind it."""
    text = config.text
    width, heads, groups = text.hidden_size, text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    pairs = queries * tokens if queries == 1 else tokens * (tokens + 1) / 2
    return (
        queries * (4 * width * heads + 6 * width * text.intermediate_size)
        + 4 * pairs * heads
        + (4 * tokens * width * groups)
    )


def stages(
    config: LlavaConfig, *, batch: int, length: int, cuts: Schedule, split: int, new_tokens: int, itemsize: int
) -> list[Stage]:
    """All stages of a prefill in order, and one decoding step.

    Args:
      config: of the model.
      batch: rows of one image each.
      length: tokens of a row, visual ones included.
      cuts: one cut at layer `split` with its count, or none.
      split: where the decoder's layers are two stages, cut or not, so that both sums are of the same parts.
      new_tokens: decoded; the step is an average one.
      itemsize: bytes of a weight.
    """
    text, visual = config.text, config.tokens_per_image
    left = tokens_by_layer(cuts, num_layers=text.num_layers, num_visual=visual)
    tokens = [length - visual + count for count in left]
    queries = [*tokens[:-1], 1]
    head = text.hidden_size * text.vocab_size
    weights = floors.decoder_weights(config)
    per_layer = (weights - head - text.hidden_size) / text.num_layers
    products = [batch * _layer(config, *counts) for counts in zip(tokens, queries, strict=True)]
    tower = Stage("tower, projector", batch * floors.tower_flops(config, cuts), _tower_weights(config) * itemsize)
    first = Stage(f"{split} full layers", sum(products[:split]), split * per_layer * itemsize)
    # In float32. What a route computes is its own affair, and a solver's loops have no bound worth the name.
    score = Stage("score, tokens read once", 0, 0, 4.0 * batch * visual * text.hidden_size)
    rest = text.num_layers - split
    second = Stage(
        f"{rest} {'carved' if cuts else 'full'} layers, head",
        sum(products[split:]) + 2.0 * batch * head,
        (rest * per_layer + head) * itemsize,
    )
    moved = floors.step_bytes(config, batch=batch, prompt_slots=tokens[-1], new_tokens=new_tokens, itemsize=itemsize)
    step = Stage("one decoding step", 2.0 * batch * weights, weights * itemsize, moved - weights * itemsize)
    return [tower, first, *([score] if cuts else []), second, step]


def summary(found: list[Stage], chip: Chip, mesh: tuple[int, int]) -> dict[str, Any]:
    """Milliseconds at least, stage by stage and of the whole prefill."""
    rows = []
    for stage in found:
        compute, memory = stage.seconds(chip, mesh)
        limit = "compute" if compute > memory else "memory"
        rows.append({"stage": stage.name, "ms": 1e3 * max(compute, memory), "limit": limit})
    return {"stages": rows, "prefill_ms": sum(row["ms"] for row in rows[:-1])}
