"""ZOO-Prune (arXiv 2509.24837): tokens that move the projector's output most, and are unlike each other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.greedy import distance, farthest
from tokencarve_jax.scores.ranking import USABLE, tiers
from tokencarve_jax.tokens import Selection, Tokens


def zoo_prune(
    tokens: Tokens,
    *,
    keep: int,
    key: jax.Array,
    tower_features: jax.Array,
    projector: Callable[[jax.Array], jax.Array],
    directions: int = 64,
    step: float = 0.01,
) -> Selection:
    """Greedy choice by sensitivity times distance: s_v * min over the taken of (1 - cosine of the projected tokens).

    The sensitivity of a token with features x is the mean over random unit directions u, the same for all tokens, of
    |M(x + h u) - M(x - h u)| / 2h, M the projector: a gradient's size without a gradient. Brought to [0, 1] by minimum
    and maximum over the image's usable tokens, it decides alone about the first token.

    Paper: ZOO-Prune, arXiv 2509.24837. Official settings: 64 directions, h = 0.01 at every budget; 192, 128 and 64 of
    576 on LLaVA-1.5, 640, 320 and 160 of 2,880 on LLaVA-NeXT.

    Shapes: tower_features [..., N, C], projector [..., C] -> [..., D] row by row, key a single PRNG key for the whole
    batch -> indices [..., K]. Cost: 2 * directions applications of the projector to all tokens (one direction at a
    time, so that memory stays O(N D)), which dwarf all else in a big model; then O(N^2 D) for the distances and O(K N)
    for the loop.

    Deviations: the features go into the projector in float32 (the original's in float16; in bfloat16 a step of 0.01
    is lost). `step = 0` asks for the derivative itself, for a projector that computes in half precision. A spread of
    the sensitivities below a thousandth of the largest is rounding, as with a linear projector, and counts as none:
    then distances decide alone and the first token is the lowest index.
    """
    told = lax.stop_gradient(tower_features).astype(jnp.promote_types(tower_features.dtype, jnp.float32))
    usable = tiers(tokens.valid, tokens.values, told) == USABLE
    told = jnp.where(usable[..., None], told, 0)
    drawn = unit_directions(key, directions, told.shape[-1]).astype(told.dtype)
    sensitivity = _sensitivity(projector, told, drawn, step)

    tier = tiers(tokens.valid, tokens.values, tower_features, sensitivity)
    usable = tier == USABLE
    apart = distance(tokens.values, usable)
    weight = _spread(sensitivity.astype(apart.dtype), usable)
    return Selection(farthest(tier, keep, apart, first=weight, weight=weight))


def unit_directions(key: jax.Array, count: int, width: int) -> jax.Array:
    """Random directions of length 1, [count, width] float32."""
    drawn = jax.random.normal(key, (count, width), jnp.float32)
    return drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)


def _sensitivity(
    projector: Callable[[jax.Array], jax.Array], features: jax.Array, directions: jax.Array, step: float
) -> jax.Array:
    """Mean over directions of the length of the projector's directional derivative, [..., N]."""

    def add(total: jax.Array, direction: jax.Array) -> tuple[jax.Array, None]:
        if step == 0:
            slope = jax.jvp(projector, (features,), (jnp.broadcast_to(direction, features.shape),))[1]
            slope = slope.astype(features.dtype)
        else:
            up, down = projector(features + step * direction), projector(features - step * direction)
            slope = (up.astype(features.dtype) - down.astype(features.dtype)) / (2 * step)
        return total + jnp.linalg.norm(slope, axis=-1), None

    total, _ = lax.scan(add, jnp.zeros(features.shape[:-1], features.dtype), directions)
    return lax.stop_gradient(total) / directions.shape[0]


def _spread(sensitivity: jax.Array, usable: jax.Array) -> jax.Array:
    """[..., N] to [0, 1] by minimum and maximum of the usable ones, 1 where they hardly differ, 0 where not usable."""
    low = jnp.where(usable, sensitivity, jnp.inf).min(-1, keepdims=True)
    high = jnp.where(usable, sensitivity, -jnp.inf).max(-1, keepdims=True)
    wide = high - low > 1e-3 * high
    spread = (jnp.where(usable, sensitivity, low) - low) / (jnp.where(wide, high - low, 1) + 1e-8)
    return jnp.where(usable, jnp.where(wide, spread, 1), 0)
