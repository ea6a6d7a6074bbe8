"""Tokens after the prompt: one step over the cache, and the loop of steps as one compiled program.

Axis letters: B batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from models.cache import Cache, seen_by_one
from models.layers import attend_cached, by_head
from models.sampling import Sampling, choose
from models.sharding import by_batch

if TYPE_CHECKING:
    from models.llava import Llava


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
    mask = seen_by_one(valid, position[:, None], positions, decoder.config.sliding_window)
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
