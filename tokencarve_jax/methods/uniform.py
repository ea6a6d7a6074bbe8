"""Uniform grid: the control that looks at nothing but where tokens stand."""

import math

import jax.numpy as jnp
import numpy as np

from tokencarve_jax.scores.ranking import USABLE, best_first, tiers
from tokencarve_jax.tokens import Selection, Tokens, rows


def uniform(tokens: Tokens, *, keep: int) -> Selection:
    """K tokens spread evenly over the raster, whatever they hold; O(N log N).

    Where the tokens have a grid and all its cells are usable, about `sqrt(K rows / columns)` of its rows are taken
    (those of all frames are one raster), evenly spaced, and K is dealt to them as evenly as it goes, at even spaces
    within each row. Otherwise the k-th token is the usable one in place `floor((k + 1/2) U / K)` of the U usable ones
    (valid and finite).

    A control of every comparison (at any K, 192/128/64 and 640/320/160 of LLaVA-NeXT too); no paper of its own.
    """
    tier = tiers(tokens.valid, tokens.values)
    order = best_first(jnp.zeros(tier.shape), tier)
    usable = (tier == USABLE).sum(-1, keepdims=True, dtype=jnp.int32)
    place = jnp.arange(keep, dtype=jnp.int32)
    spread = jnp.where(usable >= keep, (2 * place + 1) * usable // (2 * keep), place)
    if tokens.grid is not None and (cells := math.prod(tokens.grid)) >= keep:
        frames, height, width = tokens.grid
        spread = jnp.where(usable == cells, grid(frames * height, width, keep), spread)
    return Selection(jnp.sort(rows(order, spread), axis=-1))


def grid(height: int, width: int, keep: int) -> np.ndarray:
    """K places spread over a raster of `height` rows; [K] int32, ascending."""
    lines = min(height, max(1, round(math.sqrt(keep * height / width)), -(-keep // width)))
    ends = [keep * line // lines for line in range(lines + 1)]
    found = [
        (2 * line + 1) * height // (2 * lines) * width + (2 * column + 1) * width // (2 * (ends[line + 1] - ends[line]))
        for line in range(lines)
        for column in range(ends[line + 1] - ends[line])
    ]
    return np.array(found, np.int32)
