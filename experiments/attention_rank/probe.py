"""The attention output of every layer of a prompt, read in the very pass that answers it.

Axis letters: B batch, S sequence as the cuts so far leave it, N visual tokens as they leave them, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention_rank.report import TOKENS
from experiments.evaluation.probe import Probe
from experiments.metrics.rank import measure
from models.engine.model import VisionLanguageModel
from models.engine.plan import Plan, Schedule, resolve
from models.engine.prefill import Prefill, Prefilled, trace
from models.engine.prompt import Prompt
from models.engine.target import Target, target_of
from models.errors import CommandError
from tokencarve_jax.tokens import rows

Outputs = list[tuple[jax.Array, jax.Array]]


class _Flow(Prefill):
    """A prefill that records what attention adds."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.outputs: Outputs = []

    def after_layer(self, index: int, added: jax.Array, hidden: jax.Array) -> jax.Array:
        """The layer's output; records `added`, except in the last layer, where only one row is computed."""
        if index + 1 < len(self.decoder.layers):
            at, valid = self.sequence.visual_slots, self.sequence.visual_valid
            everything = jnp.where(self.sequence.is_real[..., None], added, 0)
            self.outputs.append((everything, jnp.where(valid[..., None], rows(added, at), 0)))
        return super().after_layer(index, added, hidden)


@functools.partial(jax.jit, static_argnames=("plan", "decode_capacity", "target"))
def probed(
    model: VisionLanguageModel, prompt: Prompt, seed: jax.Array, *, plan: Plan, decode_capacity: int, target: Target
) -> tuple[Prefilled, Outputs]:
    """`models.engine.prefill.prefill`, with its arguments, and what attention added on the way.

    Returns:
      What `prefill` returns; and for every layer but the last the attention output after its projection, before it is
      added to the residual stream: of all tokens left [B, S, D], padding zero, and of the visual ones [B, N, D], zero
      for those that a row lacks; both in the model's dtype.
    """
    prefilled, flow = trace(model, prompt, seed, plan=plan, decode_capacity=decode_capacity, target=target, flow=_Flow)
    return prefilled, flow.outputs


class AttentionRank(Probe):
    """Measures the attention output: by kind of token `rank` and `entropy` of each layer."""

    def __call__(
        self,
        model: VisionLanguageModel,
        prompt: Prompt,
        cuts: Schedule,
        *,
        indices: Sequence[int],
        seed: int,
        decode_capacity: int,
    ) -> tuple[Prefilled, dict[str, list[Any]]]:
        """See `Probe`.

        Raises:
          CommandError: what attention added is not finite.
        """
        plan = resolve(cuts, prompt.visual_slots.shape[1], images=prompt.images)
        target = model.target or target_of(jax.local_devices()[0])
        options: dict[str, Any] = {"plan": plan, "decode_capacity": decode_capacity, "target": target}
        prefilled, outputs = probed(model, prompt, np.uint32(seed), **options)
        found = dict[str, list[Any]]()
        for part, layers in zip(TOKENS, zip(*outputs, strict=True), strict=True):
            try:
                measured = [measure(np.asarray(layer)[: len(indices)]) for layer in layers]
            except ValueError as error:
                raise CommandError(f"{error}; pass another --dtype") from error
            ranks, entropies = (np.stack(values, axis=1).tolist() for values in zip(*measured, strict=True))
            pairs = zip(ranks, entropies, strict=True)
            found[part] = [{"rank": rank, "entropy": entropy} for rank, entropy in pairs]
        return prefilled, found
