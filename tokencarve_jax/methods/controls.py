"""Controls that any method has to beat: tokens at random, and the longest ones."""

import jax
import jax.numpy as jnp

from tokencarve_jax.scores.ranking import best, tiers
from tokencarve_jax.tokens import Selection, Tokens

_STRIP = 64


def random(tokens: Tokens, *, keep: int, key: jax.Array) -> Selection:
    """K tokens at random, each set by itself, O(N log N).

    A token's lot is drawn for the place where it stands, from a strip of places somewhat longer than N, and not for its
    number among the tokens: the same patch in the same sequence draws the same lot however the sequence is padded.
    """
    *leading, count = tokens.shape
    width = (count // _STRIP + 1) * _STRIP
    lots = jax.random.uniform(key, (*leading, width))
    axes = tokens.positions.shape[-1]
    # With several axes many tokens share a place on each.
    places = tokens.positions[..., 0] % width if axes == 1 else jnp.broadcast_to(jnp.arange(count), tokens.shape)
    return Selection(best(jnp.take_along_axis(lots, places, axis=-1), keep, tiers(tokens.valid, tokens.values)))


def norm(tokens: Tokens, *, keep: int) -> Selection:
    """The K tokens with the largest L2 norm, O(N D): the control for scores by singular value decomposition."""
    return Selection(best(length(tokens.values), keep, tiers(tokens.valid, tokens.values)))


def length(values: jax.Array) -> jax.Array:
    """The L2 norm [..., N] of rows [..., N, D], in float32 or wider."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    peak = jnp.abs(values).max(-1, keepdims=True)
    # By a power of two, so that no square overflows; and not by the peak, whose reciprocal may vanish.
    exponent, one = jnp.clip(jnp.frexp(peak)[1], -125, 125), jnp.ones_like(peak)
    return jnp.linalg.norm(values * jnp.ldexp(one, -exponent), axis=-1) * jnp.ldexp(one, exponent)[..., 0]
