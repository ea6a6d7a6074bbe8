"""The key-value cache that prefill fills and decoding goes on from.

Axis letters: B batch, T cache slots, G key-value heads, d head width, A axes of a position.
"""

from __future__ import annotations

import dataclasses

import jax

KeyValue = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
    """What the slots of some layers' caches stand for; it may change at each cut. A pytree.

    Attributes:
      valid: [B, T] bool, slots that may be attended to.
      positions: [B, T, A] int32, rotary position of each slot.
      sizes: [B, T] float32, how many tokens each slot stands for where that counts in attention, or None.
      next_position: [B] int32, rotary position of the next token, on every axis.
      slot: int32 scalar, where the next token is written (the same for all rows).
    """

    valid: jax.Array
    positions: jax.Array
    sizes: jax.Array | None
    next_position: jax.Array
    slot: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, with free slots for new tokens. A pytree.

    Attributes:
      layers: per layer, keys and values as `attend_cached` reads them, [B * G, T, d], on a mesh [B, G, T, d] (so that
        both axes can be split); keys are rotated.
      segments: what their slots stand for, layers before the first cut first.
      segment_of: for each layer, which of them. Static.
    """

    layers: tuple[KeyValue, ...]
    segments: tuple[Segment, ...]
    segment_of: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, free slots included."""
        return sum(array.nbytes for array in jax.tree.leaves(self.layers))
