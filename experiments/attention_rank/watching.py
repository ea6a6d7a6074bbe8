"""The attention output of every layer of a prompt, seen in the very pass that answers it.

Axis letters: B batch, S sequence as the cuts so far leave it, N visual tokens as they leave them, D width.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.engine import decode
from models.engine.model import VisionLanguageModel
from models.engine.plan import Plan
from models.engine.prefill import Prefill, Prefilled, trace
from models.engine.prompt import Prompt, round_up
from models.engine.target import Target, target_of
from tokencarve_jax.tokens import rows

Outputs = list[tuple[jax.Array, jax.Array]]


class _Watch(Prefill):
    """Prefill that notes down what attention adds."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.outputs: Outputs = []

    def after_layer(self, index: int, added: jax.Array, hidden: jax.Array) -> jax.Array:
        """The output; `added` is noted down, but for the last layer's: there it is one row, and nothing reads more."""
        if index + 1 < len(self.decoder.layers):
            at, valid = self.sequence.visual_slots, self.sequence.visual_valid
            everything = jnp.where(self.sequence.is_real[..., None], added, 0)
            self.outputs.append((everything, jnp.where(valid[..., None], rows(added, at), 0)))
        return super().after_layer(index, added, hidden)


@functools.partial(jax.jit, static_argnames=("plan", "decode_capacity", "target"))
def watched(
    model: VisionLanguageModel, prompt: Prompt, seed: jax.Array, *, plan: Plan, decode_capacity: int, target: Target
) -> tuple[Prefilled, Outputs]:
    """`models.engine.prefill.prefill`, and what attention added on the way.

    Args:
      model: as for `prefill`, and so are the others.
      prompt: see `prefill`.
      seed: see `prefill`.
      plan: see `prefill`.
      decode_capacity: see `prefill`.
      target: see `prefill`.

    Returns:
      What `prefill` returns; and for every layer but the last the attention output after its projection, before it is
      added to the residual stream: of all tokens left [B, S, D], padding zero, and of the visual ones [B, N, D], zero
      for those that a row lacks; both in the model's dtype.
    """
    prefilled, flow = trace(model, prompt, seed, plan=plan, decode_capacity=decode_capacity, target=target, flow=_Watch)
    return prefilled, flow.outputs


def answer(
    model: VisionLanguageModel, prompt: Prompt, plan: Plan, seed: int, *, new_tokens: int
) -> tuple[np.ndarray, Outputs]:
    """What `generate` would say, and what `watched` saw.

    Args:
      model: the model.
      prompt: a packed batch.
      plan: cuts with counts.
      seed: of compressors that draw.
      new_tokens: at most so many are generated, greedily.

    Returns:
      [B, <= new_tokens] int32, a row that ended early filled with the pad token; and the outputs.
    """
    decode_capacity = round_up(new_tokens, decode.DECODE_CAPACITY_BUCKET)
    target = model.target or target_of(jax.local_devices()[0])
    prefilled, outputs = watched(
        model, prompt, np.uint32(seed), plan=plan, decode_capacity=decode_capacity, target=target
    )
    decode_config = decode.DecodeConfig.of(model.config)
    return decode.finish(model, prefilled, seed, max_new_tokens=new_tokens, decode_config=decode_config), outputs
