"""A video's tokens by frames, whatever padding stands between them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tokencarve_jax.scores.ranking import USABLE, best_first, tiers
from tokencarve_jax.tokens import Tokens, rows


class Frames(NamedTuple):
    """Tokens in reading order, as T frames of P places each; without a grid all N are one frame.

    Attributes:
        values: [..., T, P, D], float32 or wider; zeros where a token is not usable.
        usable: [..., T, P] bool, valid and finite.
        order: [..., N] int32, the valid tokens in reading order, then padding.
        tier: [..., N] int32 in this order, from `ranking.tiers`.
    """

    values: jax.Array
    usable: jax.Array
    order: jax.Array
    tier: jax.Array

    @classmethod
    def of(cls, tokens: Tokens) -> "Frames":
        """The tokens laid out by their grid."""
        count = tokens.shape[-1]
        many, height, width = tokens.grid or (1, 1, count)
        order = best_first(jnp.zeros(tokens.shape), tokens.valid.astype(jnp.int32))
        tier = rows(tiers(tokens.valid, tokens.values), order)
        shape, cells = (*tokens.shape[:-1], many, height * width), math.prod((many, height, width))
        usable = (tier[..., :cells] == USABLE).reshape(shape)
        values = rows(tokens.values, order[..., :cells]).reshape(*shape, tokens.values.shape[-1])
        wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        return cls(jnp.where(usable[..., None], wide, 0), usable, order, tier)

    def before(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens of all frames but the first, those at their place in the frame before, and where both are usable."""
        values, usable = self.values, self.usable
        return values[..., 1:, :, :], values[..., :-1, :, :], usable[..., 1:, :] & usable[..., :-1, :]

    def best(self, score: jax.Array, keep: int, first: jax.Array | bool = False) -> jax.Array:
        """Ascending indices [..., K] int32: where `first`, then by `score`, both [..., T, P]; ties to the lower."""
        *leading, count = self.tier.shape
        cells = math.prod(self.usable.shape[-2:])
        room = [(0, 0)] * len(leading) + [(0, count - cells)]
        score = jnp.where(self.usable, score, 0).reshape(*leading, cells)
        ahead = (self.usable & first).reshape(score.shape)
        ranked = best_first(jnp.pad(score, room), self.tier + jnp.pad(ahead, room))
        return jnp.sort(rows(self.order, ranked[..., :keep]), axis=-1)
