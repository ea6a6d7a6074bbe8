"""Prefill and decoding as two compiled programs, with cuts that shorten the sequence on the way.

    tokens -> embed + visual features -> layers [0, L) -> cut -> layers [L, end) -> logits, short cache -> decode loop

A cut at layer L reads one attention row of layer L - 1 (the last prompt token's, from its query and the keys at hand:
no attention map is built), replaces the hidden rows by the survivors, and gathers positions and the caches of all
earlier layers with the same index, so that every layer's cache has one short length.

Axis letters: B batch, S sequence, N visual tokens, T cache slots, D width, G key-value heads, d head width,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from models.layers import attend, attend_cached, by_head, causal_mask
from models.prompt import Prompt
from models.sampling import Sampling, choose
from models.schedule import Cut, Schedule, apply
from models.sharding import by_batch
from tokencarve_jax import CarvedSequence, last_query_attention

if TYPE_CHECKING:
    from models.llava import Llava

KeyValue = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, with room for the tokens to come. A pytree.

    Attributes:
      layers: per layer, keys and values as `attend_cached` reads them, [B * G, T, d], on a mesh [B, G, T, d] (so that
        both axes can be split); keys are rotated.
      valid: [B, T] bool, slots that may be attended to.
      positions: [B, T] int32, rotary position of each slot (survivors of a cut keep their original one).
      next_position: [B] int32, rotary position of the next token.
      slot: int32 scalar, where the next token is written (the same for all rows).
    """

    layers: tuple[KeyValue, ...]
    valid: jax.Array
    positions: jax.Array
    next_position: jax.Array
    slot: jax.Array

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held, room for new tokens included."""
        return sum(array.nbytes for array in jax.tree.leaves(self.layers))


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


def _seen(valid: jax.Array, position: jax.Array, positions: jax.Array, window: int | None) -> jax.Array:
    """What one token per row at `position` [B, 1], behind all others, looks at: [B, T] bool."""
    return valid if window is None else valid & (position - positions < window)


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
        seen = _seen(rows.is_real, _take_rows(rows.positions, last), rows.positions, window)
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


def decode_step(llava: Llava, cache: Cache, token: jax.Array) -> tuple[jax.Array, Cache]:
    """One token per row.

    Args:
      llava: the model.
      cache: with at least one free slot; the caller counts them.
      token: [B] int32.

    Returns:
      Logits [B, V] float32 of the token after it, and the cache with it in.
    """
    decoder = llava.decoder
    hidden = decoder.embed_tokens(token[:, None])
    position = cache.next_position
    at = decoder.rotation(position[:, None])
    here = jnp.arange(cache.valid.shape[1]) == cache.slot
    valid = cache.valid | here
    positions = jnp.where(here, position[:, None], cache.positions)
    mask = _seen(valid, position[:, None], positions, decoder.config.sliding_window)
    layers = []
    for layer, (keys, values) in zip(decoder.layers, cache.layers, strict=True):
        key, value = layer.key_value(hidden, at)
        key, value = (by_head(x, room=0, merge=keys.ndim == 3) for x in (key, value))
        keys = jax.lax.dynamic_update_slice_in_dim(keys, key, cache.slot, axis=-2)
        values = jax.lax.dynamic_update_slice_in_dim(values, value, cache.slot, axis=-2)
        hidden = layer.finish(hidden, attend_cached(layer.query(hidden, at), keys, values, mask=mask))
        hidden = by_batch(hidden, llava.mesh)
        layers.append((keys, values))
    cache = Cache(tuple(layers), valid, positions, position + 1, cache.slot + 1)
    return decoder.logits(hidden[:, 0]), cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generating:
    """Where decoding stands: enough to go on from. A pytree.

    Attributes:
      cache: see `Cache`; `token` is not in it yet.
      token: [B] int32, the newest.
      ended: [B] bool, rows that have said a stop token.
      key: PRNG key for the tokens to come.
    """

    cache: Cache
    token: jax.Array
    ended: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the loop does with logits; hashable, static.

    Attributes:
      sampling: how a token is chosen.
      eos_token_ids: a row ends at any of these.
      pad_token_id: what a row that has ended is filled with.
    """

    sampling: Sampling
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    def __call__(self, logits: jax.Array, cache: Cache, ended: jax.Array, key: jax.Array) -> Generating:
        """Choose the next token from logits [B, V]."""
        key, now = jax.random.split(key)
        token = jnp.where(ended, self.pad_token_id, choose(logits, now, self.sampling))
        stops = jnp.asarray(self.eos_token_ids, jnp.int32)
        return Generating(cache, token, ended | (token[:, None] == stops).any(1), key)


@functools.partial(jax.jit, static_argnames=("choice",), donate_argnames=("cache",))
def first_token(logits: jax.Array, cache: Cache, seed: jax.Array, *, choice: Choice) -> Generating:
    """Choose the token after the prompt. `cache` is donated."""
    return choice(logits, cache, jnp.zeros(logits.shape[0], bool), jax.random.key(seed))


@functools.partial(jax.jit, static_argnames=("size", "choice"), donate_argnames=("state",))
def decode(
    llava: Llava, state: Generating, limit: jax.Array, *, size: int, choice: Choice
) -> tuple[jax.Array, jax.Array, Generating]:
    """Decode until every row has ended or `limit` tokens are out, in one loop on the device.

    Args:
      llava: the model.
      state: where decoding stands; donated. Its cache needs `limit` free slots.
      limit: int32 scalar, at most `size`.
      size: width of the result. Static.
      choice: how tokens are chosen. Static.

    Returns:
      The tokens after `state.token` [B, size] int32, how many columns were written (int32 scalar), and the state
      to go on from.
    """
    out = jnp.full((state.token.shape[0], size), choice.pad_token_id, jnp.int32)

    def more(carry: tuple[Generating, jax.Array, jax.Array]) -> jax.Array:
        state, _, written = carry
        return (written < limit) & ~state.ended.all()

    def step(carry: tuple[Generating, jax.Array, jax.Array]) -> tuple[Generating, jax.Array, jax.Array]:
        state, out, written = carry
        logits, cache = decode_step(llava, state.cache, state.token)
        state = choice(logits, cache, state.ended, state.key)
        out = jax.lax.dynamic_update_slice_in_dim(out, state.token[:, None], written, axis=1)
        return state, out, written + 1

    state, out, written = jax.lax.while_loop(more, step, (state, out, jnp.int32(0)))
    return out, written, state
