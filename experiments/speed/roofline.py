"""The least time that each stage of an answer takes on a chip, from its published rates. Computed, never measured.

A stage is done no sooner than its products at the chip's peak, nor than its weights, keys and values pass from memory:
the larger of the two. What a stage hands to the next, and what chips send each other, counts nothing, so these are
lower bounds. Nothing overlaps between stages.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.metrics import costs
from experiments.speed.targets import Chip
from models.engine.plan import Schedule
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


def stages(
    config: LlavaConfig, *, batch: int, length: int, cuts: Schedule, split: int, new_tokens: int, itemsize: int
) -> list[Stage]:
    """All stages of a prefill in order, and one decoding step, an average one of `new_tokens`.

    `length` counts the tokens of a row, visual ones included; `cuts` are one at layer `split`, or none. The decoder's
    layers are two stages in either case, so that both sums are of the same parts.
    """
    text = config.text
    head = text.hidden_size * text.vocab_size
    weights = costs.decoder_weights(config)
    per_layer = (weights - head - text.hidden_size) / text.num_layers
    counts = costs.tokens_and_queries(config, length, cuts)
    # A query sees no key behind it.
    pairs = [tokens if queries == 1 else tokens * (tokens + 1) / 2 for tokens, queries in counts]
    products = [
        batch * costs.layer_flops(text, tokens, queries, seen)
        for (tokens, queries), seen in zip(counts, pairs, strict=True)
    ]
    rest = text.num_layers - split
    moved = costs.step_bytes(config, batch=batch, prompt_slots=counts[-1][0], new_tokens=new_tokens, itemsize=itemsize)
    # The score is read in float32. What a route computes is its own affair, and a solver's loops have no useful bound.
    score = Stage("score, tokens read once", 0, 0, 4.0 * batch * config.tokens_per_image * text.hidden_size)
    return [
        Stage("tower, projector", batch * costs.tower_flops(config, cuts), costs.tower_weights(config) * itemsize),
        Stage(f"{split} full layers", sum(products[:split]), split * per_layer * itemsize),
        *([score] if cuts else []),
        Stage(
            f"{rest} {'carved' if cuts else 'full'} layers, head",
            sum(products[split:]) + 2.0 * batch * head,
            (rest * per_layer + head) * itemsize,
        ),
        Stage("one decoding step", 2.0 * batch * weights, weights * itemsize, moved - weights * itemsize),
    ]


def summary(found: list[Stage], chip: Chip, mesh: tuple[int, int]) -> dict[str, Any]:
    """Milliseconds at least, stage by stage and of the whole prefill."""
    rows = []
    for stage in found:
        compute, memory = stage.seconds(chip, mesh)
        limit = "compute" if compute > memory else "memory"
        rows.append({"stage": stage.name, "ms": 1e3 * max(compute, memory), "limit": limit})
    return {"stages": rows, "prefill_ms": sum(row["ms"] for row in rows[:-1])}
