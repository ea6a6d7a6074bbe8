"""Average pooling, the compressor of LLaVolta (arXiv 2406.20092) without its training."""

import math

import jax.numpy as jnp
import numpy as np

from tokencarve_jax.scores.ranking import USABLE, best_first, invert, tiers
from tokencarve_jax.tokens import Selection, Tokens, rows, rows_of


def pooling(tokens: Tokens, *, keep: int) -> Selection:
    """K means of neighbours: of s x s patches where K is N / s^2 and N a square, else of stretches; O(N log N + N K D).

    A stretch is a run of consecutive usable tokens (valid and finite), all of them as long as each other or longer by
    one. In a row's place stands its middle token, the upper and the left one of two, and its position stays: the lower
    median of those that joined, which for a stretch is the mean rounded down. All usable tokens live on.

    LLaVolta pools in one dimension, at stride 8 and layer 2 in its heaviest stage, and averages positions. Here K is
    free (192/128/64, and 640/320/160 of LLaVA-NeXT), and means are weighted by size, so that pooled tokens pool.
    """
    count = tokens.shape[-1]
    tier = tiers(tokens.valid, tokens.values)
    order = best_first(jnp.zeros(tier.shape), tier)
    usable = (tier == USABLE).sum(-1, keepdims=True, dtype=jnp.int32)
    enough, row = usable >= keep, jnp.arange(keep, dtype=jnp.int32)
    # Row k begins at place ceil(k U / K).
    first, last = -(-row * usable // keep), -(-(row + 1) * usable // keep) - 1
    place = jnp.where(enough, (first + last) // 2, row)
    joined = jnp.where(tier == USABLE, invert(order).astype(jnp.int32) * keep // jnp.maximum(usable, 1), -1)
    if (side := patch_side(count, keep)) is not None:
        of_each, middles = patches(count, side)
        place = jnp.where(usable == count, middles, place)
        joined = jnp.where(usable == count, of_each, joined)
    indices = jnp.sort(rows(order, place), axis=-1)
    return Selection(indices, jnp.where(enough, joined, rows_of(indices, count)))


def patch_side(count: int, keep: int) -> int | None:
    """The side s of patches that leave `keep` tokens of a square raster; None where there is none."""
    side, kept = math.isqrt(count), math.isqrt(keep)
    return side // kept if (side**2, kept**2) == (count, keep) and side % kept == 0 else None


def patches(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For each token of a square raster its patch [N], and for each patch its middle token [K]; int32."""
    width = math.isqrt(count)
    line, column = np.divmod(np.arange(count, dtype=np.int32), width)
    middle = (line % side == (side - 1) // 2) & (column % side == (side - 1) // 2)
    of_each = line // side * (width // side) + column // side
    return of_each, np.flatnonzero(middle).astype(np.int32)
