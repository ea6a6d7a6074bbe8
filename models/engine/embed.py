"""What enters the decoder: token embeddings, with what the tower gives for images in their places.

Axis letters: B batch, S sequence, N visual tokens, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from models.engine.plan import TOWER, Cut, Plan
from models.engine.prompt import Prompt
from models.engine.relevance import FEATURES, RELEVANCE
from models.engine.sequence import CutRecord, Sequence, Survivors
from models.engine.sharding import by_batch
from models.engine.visual import TowerRequest, Visual
from tokencarve_jax.tokens import rows

_NO_CUTS = Plan()


def tower_request(model: Any, prompt: Prompt, *, plan: Plan, kernel: str) -> TowerRequest:
    """What a plan asks of the tower: plans for which that is the same see the same."""
    reads = {what for what in plan.reads() if what[0] in model.evidence}
    reads |= {FEATURES} if prompt.relevance is not None and plan.asks(*RELEVANCE) else set()
    return TowerRequest(tuple(sorted(reads)), plan.at(TOWER), kernel)


@functools.partial(jax.jit, static_argnames=("request",))
def see(model: Any, pixel_values: Any, seed: jax.Array, *, request: TowerRequest) -> Visual:
    """Run the tower alone: a prompt that holds the result as its `pixel_values` is prefilled without it.

    Several plans, or questions about the same images, can then share it. Arguments are as for `prefill`.
    """
    return model.visual(pixel_values, request, tower_key(seed))


def tower_key(seed: jax.Array) -> jax.Array:
    """The PRNG key of a cut in the tower."""
    return jax.random.fold_in(jax.random.key(seed), 2**31 - 1)


def embed(
    model: Any, prompt: Prompt, *, plan: Plan = _NO_CUTS, kernel: str = "blocks", key: jax.Array | None = None
) -> tuple[jax.Array, Sequence, tuple[CutRecord, ...]]:
    """Token embeddings [B, S, D] with the visual tokens in their places, the sequence, and the record of a tower cut.

    Args:
      model: the model.
      prompt: a packed batch.
      plan: its cut in the tower is carried out here.
      kernel: of attention in the tower.
      key: PRNG key for that cut.
    """
    hidden = model.decoder.embed_tokens(prompt.input_ids)
    sequence = Sequence(
        positions=prompt.positions,
        next_position=prompt.next_position,
        lengths=prompt.lengths,
        visual_slots=prompt.visual_slots,
        visual_valid=prompt.visual_valid,
        border=prompt.border,
        grid=prompt.grid,
        sizes=jnp.ones(prompt.visual_slots.shape, jnp.float32),
        weighed=False,
        distant=False,
        evidence={},
        text=hidden[:, :0],
        text_relevance=None,
        questions=prompt.relevance if plan.asks(*RELEVANCE) else None,
    )
    sequence = dataclasses.replace(sequence, text=rows(hidden, sequence.text_slots))
    if prompt.pixel_values is None:
        return hidden, sequence, ()
    cut = plan.at(TOWER)
    visual = prompt.pixel_values
    if not isinstance(visual, Visual):
        visual = model.visual(visual, tower_request(model, prompt, plan=plan, kernel=kernel), key)
    if cut is not None:
        if prompt.border is not None or not prompt.whole:
            raise ValueError(
                f"cut {cut}: a cut in the tower needs whole images without border tokens; let all tokens enter, and "
                "pass no border"
            )
        return _spread(hidden, sequence, visual, prompt, cut, model.mesh)
    found = {what: jnp.take(array, prompt.feature_index, axis=0) for what, array in visual.evidence.items()}
    features = jnp.take(visual.tokens, prompt.feature_index, axis=0)
    batch = jnp.arange(hidden.shape[0])[:, None]
    hidden = hidden.at[batch, prompt.visual_slots].set(features.astype(hidden.dtype), unique_indices=True)
    deepstack = tuple(jnp.take(array, prompt.feature_index, axis=0) for array in visual.deepstack)
    return by_batch(hidden, model.mesh), dataclasses.replace(sequence, evidence=found, deepstack=deepstack), ()


def _spread(
    hidden: jax.Array, sequence: Sequence, visual: Visual, prompt: Prompt, cut: Cut, mesh: Any
) -> tuple[jax.Array, Sequence, tuple[CutRecord, ...]]:
    """Put the survivors of a cut in the tower into their places, and drop the other places."""
    assert visual.indices is not None
    assert visual.assignment is not None
    assert visual.sizes is not None
    each, kept = visual.assignment.shape[1], visual.indices.shape[1]
    image = prompt.feature_index[:, ::each] // each  # [B, I], which image a stretch shows
    record = CutRecord.of_images(*(jnp.take(x, image, axis=0) for x in (visual.indices, visual.assignment)))
    features = (image[..., None] * kept + jnp.arange(kept)[None, None]).reshape(len(hidden), -1)
    left = Survivors(
        record,
        values=jnp.take(visual.tokens, features, axis=0),
        sizes=jnp.take(visual.sizes.reshape(-1), features),
        evidence={what: jnp.take(array, features, axis=0) for what, array in visual.evidence.items()},
    )
    hidden, sequence, _, record = sequence.shorten(hidden, left, cut, images=image.shape[1])
    return by_batch(hidden, mesh), sequence, (record,)
