"""Tokens after the prompt: one step over the cache, and the loop of steps as one compiled program.

Axis letters: B batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.engine.cache import Cache, KeyValue, Segment
from models.engine.loop import Flow, run_layers
from models.engine.prefill import Prefilled
from models.engine.prompt import round_up
from models.engine.sampling import GREEDY, Sampling, choose
from models.engine.sharding import by_batch
from models.nn.attention import attend_cached, by_head, log_sizes, seen_by_one
from models.nn.llama import Decoder
from models.nn.rotary import Rotation

DECODE_CAPACITY_BUCKET = 32  # free slots of a cache are a multiple of this


class _Step(Flow):
    """A flow of one token per row over the cache."""

    def __init__(self, decoder: Decoder, cache: Cache, mesh: Any):
        self.decoder, self.cache, self.mesh = decoder, cache, mesh
        self.layers: list[KeyValue] = []
        axes = cache.segments[0].positions.shape[-1]
        self.segments, self.masks, self.rotations = list[Segment](), list[jax.Array](), list[Rotation]()
        for segment in cache.segments:
            here = jnp.arange(segment.valid.shape[1])[None] == segment.slot
            position = segment.next_position
            valid = segment.valid | here
            positions = jnp.where(here[..., None], position[:, None, None], segment.positions)
            self.masks.append(seen_by_one(valid, position, positions, decoder.config.sliding_window))
            self.rotations.append(decoder.rotation(jnp.broadcast_to(position[:, None, None], (len(position), 1, axes))))
            self.segments.append(Segment(valid, positions, segment.sizes, position + 1, segment.slot + 1))

    def rotation(self, index: int) -> Rotation:
        """Rotary angles of the new token in the layer's segment."""
        return self.rotations[self.cache.segment_of[index]]

    def attend(self, index: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """Attention to the layer's cache, which includes the new token."""
        number = self.cache.segment_of[index]
        segment, (keys, values) = self.cache.segments[number], self.cache.layers[index]
        key, value = (by_head(x, decode_capacity=0, merge=keys.ndim == 3) for x in (key, value))
        keys = jax.lax.dynamic_update_slice_in_dim(keys, key, segment.slot, axis=-2)
        values = jax.lax.dynamic_update_slice_in_dim(values, value, segment.slot, axis=-2)
        self.layers.append((keys, values))
        return attend_cached(query, keys, values, mask=self.masks[number], bias=log_sizes(segment.sizes))

    def after_layer(self, index: int, added: jax.Array, hidden: jax.Array) -> jax.Array:
        """[B, 1, D]."""
        del index, added
        return by_batch(hidden, self.mesh)


def decode_step(model: Any, cache: Cache, token: jax.Array) -> tuple[jax.Array, Cache]:
    """Logits [B, V] float32 of what follows `token` [B] int32, and the cache including it.

    The cache needs a free slot; the caller counts them.
    """
    decoder = model.decoder
    flow = _Step(decoder, cache, model.mesh)
    hidden = run_layers(decoder.layers, decoder.embed_tokens(token[:, None]), flow)
    cache = dataclasses.replace(cache, layers=tuple(flow.layers), segments=tuple(flow.segments))
    return decoder.logits(hidden[:, 0]), cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generating:
    """The state of decoding between two steps. A pytree.

    Attributes:
      cache: without `token`.
      token: [B] int32, the newest.
      ended: [B] bool, rows with a stop token.
      key: PRNG key for the tokens to come.
    """

    cache: Cache
    token: jax.Array
    ended: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How the loop chooses tokens and ends rows; hashable, static.

    Attributes:
      sampling: how a token is chosen.
      eos_token_ids: a row ends at any of these.
      pad_token_id: what a row that has ended is filled with.
    """

    sampling: Sampling
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @classmethod
    def of(cls, config: Any, sampling: Sampling = GREEDY) -> DecodeConfig:
        """With the special tokens of a model's configuration."""
        return cls(sampling, config.eos_token_ids, config.pad_token_id)

    def __call__(self, logits: jax.Array, ended: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The next token [B] from logits [B, V], whether rows have then ended [B], and the next key."""
        key, now = jax.random.split(key)
        token = jnp.where(ended, self.pad_token_id, choose(logits, now, self.sampling))
        stops = jnp.asarray(self.eos_token_ids, jnp.int32)
        return token, ended | (token[:, None] == stops[None]).any(1), key


@functools.partial(jax.jit, static_argnames=("decode_config",))
def first_token(
    logits: jax.Array, seed: jax.Array, *, decode_config: DecodeConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The token after the prompt [B], which rows have ended [B], and the key for the next one."""
    return decode_config(logits, jnp.zeros(logits.shape[0], bool), jax.random.key(seed))


def begin(prefilled: Prefilled, seed: int, *, decode_config: DecodeConfig) -> Generating:
    """The state after the first token, for `continued`; it holds the prompt's cache, which is donated there."""
    return Generating(
        prefilled.cache, *first_token(prefilled.logits, jax.device_put(np.uint32(seed)), decode_config=decode_config)
    )


def finish(
    model: Any, prefilled: Prefilled, seed: int, *, max_new_tokens: int, decode_config: DecodeConfig
) -> np.ndarray:
    """All new tokens [B, <= max_new_tokens] int32, at once; arguments are those of `begin` and `continued`."""
    state = begin(prefilled, seed, decode_config=decode_config)
    chunks = continued(model, state, max_new_tokens=max_new_tokens, decode_config=decode_config, chunk=max_new_tokens)
    return np.concatenate(list(chunks), axis=1)


def continued(
    model: Any, state: Generating, *, max_new_tokens: int, decode_config: DecodeConfig, chunk: int
) -> Iterator[np.ndarray]:
    """New tokens in chunks, until every row has ended; trimmed on the host, as each width would be a program on device.

    Args:
      model: the model.
      state: from `begin`; donated. Its cache has `max_new_tokens` free slots, rounded up to `DECODE_CAPACITY_BUCKET`.
      max_new_tokens: in all.
      decode_config: as in `begin`.
      chunk: tokens between two transfers to the host.

    Yields:
      [B, 1], then [B, <= chunk] int32.
    """
    yield jax.device_get(state.token)[:, None]
    left = max_new_tokens - 1
    while left and not jax.device_get(state.ended).all():
        limit, size = min(left, chunk), round_up(min(left, chunk), DECODE_CAPACITY_BUCKET)
        out, written, state = decode(
            model, state, jax.device_put(np.int32(limit)), size=size, decode_config=decode_config
        )
        out, written = jax.device_get((out, written))
        yield out[:, :written]
        left -= limit


@functools.partial(jax.jit, static_argnames=("size", "decode_config"), donate_argnames=("state",))
def decode(
    model: Any, state: Generating, limit: jax.Array, *, size: int, decode_config: DecodeConfig
) -> tuple[jax.Array, jax.Array, Generating]:
    """Decode until every row has ended or `limit` tokens are chosen, in one loop on the device.

    Args:
      model: the model.
      state: donated. Its cache needs `limit` free slots.
      limit: int32 scalar, at most `size`.
      size: width of the result. Static.
      decode_config: how tokens are chosen. Static.

    Returns:
      The tokens after `state.token` [B, size] int32, how many columns were written (int32 scalar), and the new state.
    """
    out = jnp.full((state.token.shape[0], size), decode_config.pad_token_id, jnp.int32)

    def more(carry: tuple[Generating, jax.Array, jax.Array]) -> jax.Array:
        state, _, written = carry
        return (written < limit) & ~state.ended.all()

    def step(carry: tuple[Generating, jax.Array, jax.Array]) -> tuple[Generating, jax.Array, jax.Array]:
        state, out, written = carry
        logits, cache = decode_step(model, state.cache, state.token)
        state = Generating(cache, *decode_config(logits, state.ended, state.key))
        out = jax.lax.dynamic_update_slice_in_dim(out, state.token[:, None], written, axis=1)
        return state, out, written + 1

    state, out, written = jax.lax.while_loop(more, step, (state, out, jnp.int32(0)))
    return out, written, state


@jax.jit
def loglikelihood(model: Any, prefilled: Prefilled, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log probabilities [B, T] float32 of `tokens` [B, T] int32 after the prompts, and whether each is the likeliest.

    The cache of the prompts, cut or not, needs T free slots.
    """

    def step(carry: tuple[jax.Array, Cache], token: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        logits, cache = carry
        logged = jax.nn.log_softmax(logits, axis=-1)
        likely = jnp.take_along_axis(logged, token[:, None], axis=-1)[:, 0]
        return decode_step(model, cache, token), (likely, jnp.argmax(logits, axis=-1) == token)

    _, (likely, greedy) = jax.lax.scan(step, (prefilled.logits, prefilled.cache), tokens.T)
    return likely.T, greedy.T
