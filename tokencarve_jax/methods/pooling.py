"""Average pooling, the compressor of LLaVolta (arXiv 2406.20092) without its training."""

import math

import jax.numpy as jnp
import numpy as np

from tokencarve_jax.scores.ranking import USABLE, best_first, invert, tiers
from tokencarve_jax.tokens import Selection, Tokens, rows, rows_of


def pooling(tokens: Tokens, *, keep: int) -> Selection:
    """K means of neighbours: of s x s patches of the tokens' grid, else of stretches; O(N log N + N K D).

    Patches are where the tokens have a grid of K s^2 cells, all of them usable, and s divides its rows and columns.

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
    if tokens.grid is not None and (side := patch_side(tokens.grid, keep)) is not None:
        cells, (of_each, middles) = math.prod(tokens.grid), patches(tokens.grid, side)
        cell = jnp.minimum(invert(order), cells - 1)
        patch = jnp.where(tier == USABLE, jnp.take(jnp.asarray(of_each), cell), -1)
        place = jnp.where(usable == cells, middles, place)
        joined = jnp.where(usable == cells, patch, joined)
    indices = jnp.sort(rows(order, place), axis=-1)
    return Selection(indices, jnp.where(enough, joined, rows_of(indices, count)))


def patch_side(grid: tuple[int, int, int], keep: int) -> int | None:
    """The side s of patches that leave `keep` cells of a grid; None where there is none."""
    _, height, width = grid
    side = math.isqrt(math.prod(grid) // keep)
    whole = side > 0 and height % side == 0 and width % side == 0
    return side if whole and keep * side**2 == math.prod(grid) else None


def patches(grid: tuple[int, int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """For each cell of a grid its patch [cells], and for each patch its middle cell [K]; int32."""
    _, _, width = grid
    line, column = np.divmod(np.arange(math.prod(grid), dtype=np.int32), width)  # frames one below the other
    middle = (line % side == (side - 1) // 2) & (column % side == (side - 1) // 2)
    of_each = line // side * (width // side) + column // side
    return of_each, np.flatnonzero(middle).astype(np.int32)
