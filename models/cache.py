"""The key-value cache that prefill fills and decoding goes on from.

Axis letters: B batch, T cache slots, G key-value heads, d head width.
"""

from __future__ import annotations

import dataclasses

import jax

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


def seen_by_one(valid: jax.Array, position: jax.Array, positions: jax.Array, window: int | None) -> jax.Array:
    """What one token per row at `position` [B, 1], behind all others, looks at: [B, T] bool."""
    return valid if window is None else valid & (position - positions < window)
