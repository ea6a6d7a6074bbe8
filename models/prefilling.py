"""The prompt as one compiled program, with cuts that shorten the sequence on the way.

    tokens -> embed + visual features -> layers [0, L) -> cut -> layers [L, end) -> logits, short cache

A cut at layer L reads one attention row of layer L - 1 (the last prompt token's, from its query and the keys at hand:
no attention map is built), replaces the hidden rows by the survivors, and gathers positions and the caches of all
earlier layers with the same index, so that every layer's cache has one short length.

Axis letters: B batch, S sequence, N visual tokens, K kept, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from models.cache import Cache, KeyValue, seen_by_one
from models.layers import attend, by_head, causal_mask
from models.prompt import Prompt
from models.schedule import Cut, Schedule, apply
from models.sharding import by_batch
from tokencarve_jax import CarvedSequence, last_query_attention

if TYPE_CHECKING:
    from models.llava import Llava


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """What prefill hands to decoding. A pytree.

    Attributes:
      logits: [B, V] float32 of the token after the prompt.
      cache: see `Cache`.
      assignments: per cut, [B, N] int32: which survivor each visual token before that cut lives on in, or -1.
      survivors: per cut, [B, K] int32: which of the visual tokens before that cut the survivors are.
    """

    logits: jax.Array
    cache: Cache
    assignments: tuple[jax.Array, ...]
    survivors: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The sequence between two layers: what a cut replaces."""

    hidden: jax.Array  # [B, S, D]
    positions: jax.Array  # [B, S]
    lengths: jax.Array  # [B]
    visual_positions: jax.Array  # [B, N]
    visual_valid: jax.Array  # [B, N]

    @property
    def is_real(self) -> jax.Array:
        return jnp.arange(self.hidden.shape[1]) < self.lengths[:, None]


def _take_rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """[B, S, ...] at [B, R] -> [B, R, ...]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *([1] * (x.ndim - 2))), axis=1)


def _window_mask(rows: _Rows, window: int | None) -> jax.Array | None:
    """None where causality is all there is: padding stands behind every real token, so that none looks at it."""
    if window is None:
        return None
    return causal_mask(rows.lengths, rows.hidden.shape[1], positions=rows.positions, window=window)


def embed(llava: Llava, prompt: Prompt) -> jax.Array:
    """Token embeddings with the visual features in their places: [B, S, D]."""
    hidden = llava.decoder.embed_tokens(prompt.input_ids)
    if prompt.pixel_values is None:
        return hidden
    features = jnp.take(llava.visual_rows(prompt.pixel_values), prompt.visual_features, axis=0)
    rows = jnp.arange(hidden.shape[0])[:, None]
    hidden = hidden.at[rows, prompt.visual_positions].set(features.astype(hidden.dtype), unique_indices=True)
    return by_batch(hidden, llava.mesh)


def _cut(
    rows: _Rows, attention: jax.Array, attention_output: jax.Array, *, cut: Cut, images: int | None, key: jax.Array
) -> tuple[_Rows, CarvedSequence]:
    """Apply one method; also returns its `CarvedSequence`."""
    carved = apply(
        cut,
        rows.hidden,
        attention,
        rows.visual_positions,
        attention_output=attention_output,
        images=images,
        valid=rows.visual_valid,
        key=key,
    )
    kept = carved.kept
    survivor_valid = jnp.take_along_axis(rows.visual_valid, carved.indices, axis=1)
    survivor_positions = jnp.take_along_axis(rows.visual_positions, carved.indices, axis=1)
    new_slots = jax.vmap(jnp.searchsorted)(kept, survivor_positions).astype(jnp.int32)
    lost = rows.visual_valid.sum(1) - survivor_valid.sum(1)
    shorter = _Rows(
        hidden=carved.hidden,
        positions=_take_rows(rows.positions, kept),
        lengths=(rows.lengths - lost).astype(jnp.int32),
        visual_positions=new_slots,
        visual_valid=survivor_valid,
    )
    return shorter, carved


@functools.partial(jax.jit, static_argnames=("schedule", "room"))
def prefill(llava: Llava, prompt: Prompt, seed: jax.Array, *, schedule: Schedule, room: int) -> Prefilled:
    """Run the prompt, cutting where the schedule says.

    Args:
      llava: the model.
      prompt: a packed batch.
      seed: uint32 scalar, for methods that draw.
      schedule: cuts with counts, as `schedule.resolve` gives. Static.
      room: slots to leave in the cache for new tokens. Static.

    Returns:
      Logits of the next token, and the cache.
    """
    decoder = llava.decoder
    hidden = embed(llava, prompt)
    batch, size, _ = hidden.shape
    rows = _Rows(
        hidden=hidden,
        positions=jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (batch, size)),
        lengths=prompt.lengths,
        visual_positions=prompt.visual_positions,
        visual_valid=prompt.visual_valid,
    )
    cuts = {cut.layer: cut for cut in schedule}
    window = decoder.config.sliding_window
    layers: list[KeyValue] = []
    assignments, survivors = [], []
    before: tuple[jax.Array, jax.Array] | None = None  # what the layer before a cut attended to, and made of it
    at = decoder.rotation(rows.positions)
    mask = _window_mask(rows, window)
    for index, layer in enumerate(decoder.layers):
        if index in cuts:
            cut = cuts[index]
            assert before is not None  # a cut is never before the first layer
            key = jax.random.fold_in(jax.random.key(seed), index)
            rows, carved = _cut(rows, *before, cut=cut, images=prompt.images, key=key)
            layers = [(_take_rows(k, carved.kept), _take_rows(v, carved.kept)) for k, v in layers]
            assignments.append(carved.assignment)
            survivors.append(carved.indices)
            at = decoder.rotation(rows.positions)
            mask = _window_mask(rows, window)
        key_value = layer.key_value(rows.hidden, at)
        layers.append(key_value)
        last = rows.lengths[:, None] - 1
        seen = seen_by_one(rows.is_real, _take_rows(rows.positions, last), rows.positions, window)
        if index + 1 == len(decoder.layers):
            # Only the last token's output is read from here on, so only its query is computed.
            hidden = _take_rows(rows.hidden, last)
            query = layer.query(hidden, tuple(_take_rows(part, last) for part in at))
            hidden = layer.finish(hidden, attend(query, *key_value, mask=seen[:, None]))
            break
        query = layer.query(rows.hidden, at)
        attended = attend(query, *key_value, mask=mask, causal=True)
        if index + 1 in cuts:
            attention = last_query_attention(_take_rows(query, last)[:, 0], key_value[0], mask=seen)
            before = attention, layer.self_attn.o_proj(attended)
        hidden = layer.finish(rows.hidden, attended)
        rows = dataclasses.replace(rows, hidden=by_batch(hidden, llava.mesh))

    slots = rows.positions.shape[1]
    grow = [(0, 0), (0, room)]
    cached = functools.partial(by_head, room=room, merge=llava.mesh is None)
    cache = Cache(
        layers=tuple((cached(k), cached(v)) for k, v in layers),
        valid=jnp.pad(rows.is_real, grow),
        positions=jnp.pad(rows.positions, grow),
        next_position=prompt.lengths,
        slot=jnp.asarray(slots, jnp.int32),
    )
    return Prefilled(decoder.logits(hidden[:, 0]), cache, tuple(assignments), tuple(survivors))
