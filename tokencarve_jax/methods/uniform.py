"""Uniform grid: the control that looks at nothing but where tokens stand."""

import math

import jax.numpy as jnp
import numpy as np

from tokencarve_jax.scores.ranking import USABLE, best_first, tiers
from tokencarve_jax.tokens import Selection, Tokens, rows


def uniform(tokens: Tokens, *, keep: int) -> Selection:
    """K tokens spread evenly over the raster, whatever they hold; O(N log N).

    Where N is a square and all tokens are usable, the raster has sqrt(N) columns: `round(sqrt(K))` of its rows are
    taken, evenly spaced, and K is dealt to them as evenly as it goes, at even spaces within each row. Otherwise the
    k-th token is the usable one in place `floor((k + 1/2) U / K)` of the U usable ones (valid and finite).

    A control of every comparison (at any K, 192/128/64 and 640/320/160 of LLaVA-NeXT too); no paper of its own.
    """
    count = tokens.shape[-1]
    tier = tiers(tokens.valid, tokens.values)
    order = best_first(jnp.zeros(tier.shape), tier)
    usable = (tier == USABLE).sum(-1, keepdims=True, dtype=jnp.int32)
    place = jnp.arange(keep, dtype=jnp.int32)
    spread = jnp.where(usable >= keep, (2 * place + 1) * usable // (2 * keep), place)
    if math.isqrt(count) ** 2 == count:
        spread = jnp.where(usable == count, grid(count, keep), spread)
    return Selection(jnp.sort(rows(order, spread), axis=-1))


def grid(count: int, keep: int) -> np.ndarray:
    """K places spread over a square raster of `count`; [K] int32, ascending."""
    side = math.isqrt(count)
    lines = max(round(math.sqrt(keep)), -(-keep // side))
    ends = [keep * line // lines for line in range(lines + 1)]
    found = [
        (2 * line + 1) * side // (2 * lines) * side + (2 * column + 1) * side // (2 * (ends[line + 1] - ends[line]))
        for line in range(lines)
        for column in range(ends[line + 1] - ends[line])
    ]
    return np.array(found, np.int32)
