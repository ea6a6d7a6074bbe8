"""Ordering with every tie decided: by the lower original index, on every backend."""

import fractions

import jax
import jax.numpy as jnp
from jax import lax

USABLE = 2  # tiers: 0 padding, 1 valid but not finite, 2 usable


def tiers(valid: jax.Array, *scores: jax.Array) -> jax.Array:
    """What goes first whatever the scores: [..., N] int32 from `valid` [..., N] and arrays [..., N] or [..., N, D].

    Tokens for which all arrays are finite (`USABLE`), then the other valid ones, then padding.
    """
    usable = valid
    for score in scores:
        finite = jnp.isfinite(score)
        usable &= finite if finite.ndim == valid.ndim else finite.all(-1)
    return jnp.where(usable, USABLE, valid.astype(jnp.int32))


def best_first(score: jax.Array, tier: jax.Array | None = None) -> jax.Array:
    """Indices from the highest to the lowest score along the last axis; a higher tier comes before any score."""
    index = lax.broadcasted_iota(jnp.int32, score.shape, score.ndim - 1)
    keys = (-score, index) if tier is None else (-tier, -score, index)
    return lax.sort(keys, num_keys=len(keys))[-1]


def best(score: jax.Array, keep: int, tier: jax.Array | None = None) -> jax.Array:
    """Indices of the `keep` best, ascending: [..., K] int32. A score that is not a number counts as the lowest.

    Below the highest tier scores say nothing, and the lower index goes first: what padding holds has no influence.
    """
    score = jnp.where(jnp.isnan(score), -jnp.inf, score)
    score = score if tier is None else jnp.where(tier == USABLE, score, 0)
    return jnp.sort(best_first(score, tier)[..., :keep], axis=-1)


def invert(order: jax.Array) -> jax.Array:
    """The inverse of permutations along the last axis: the place at which each index stands."""
    return jnp.argsort(order, axis=-1)


def rank_points(score: jax.Array, tier: jax.Array) -> jax.Array:
    """The best of N gets N points and the last gets 1; [..., N] int32. Below the highest tier scores say nothing."""
    return score.shape[-1] - invert(best_first(jnp.where(tier == USABLE, score, 0), tier))


def fuse_ranks(attention: jax.Array, information: jax.Array, tier: jax.Array, weight: float) -> jax.Array:
    """Weighted sum of rank points, best first gets N points and the last gets 1; [..., N] int32.

    The weight enters as a fraction p / q and the score is p * points + (q - p) * points in integers, so that equal
    scores are equal on every backend and in every batch layout: rounding cannot decide a tie.
    """
    n = attention.shape[-1]
    exact = fractions.Fraction(weight).limit_denominator(max(1, min(10_000, (2**31 - 1) // n)))
    by_attention, by_information = rank_points(attention, tier), rank_points(information, tier)
    return exact.numerator * by_attention + (exact.denominator - exact.numerator) * by_information
