"""HiPrune (arXiv 2508.00553): what a middle layer looks at with its surroundings, and what a deep layer looks at."""

import jax
import jax.numpy as jnp

from tokencarve_jax.scores.ranking import USABLE, best, best_first, tiers
from tokencarve_jax.tokens import Selection, Tokens, rows


def hiprune(
    tokens: Tokens,
    *,
    keep: int,
    middle_attention: jax.Array,
    global_attention: jax.Array,
    alpha: float = 0.1,
    width: int | None = None,
) -> Selection:
    """Anchors of a middle layer, buffers beside them, and registers of a deep layer; nothing merges.

    Anchors are the round(alpha K / 5) tokens with the highest attention in the middle layer, buffers their neighbours
    in the raster, registers the tokens with the highest attention in the deep layer that are neither, up to K in all.
    Neighbours are counted along the raster, one and one row's length before and behind: an anchor at the edge of a row
    has the end of the next row beside it, and what lies outside the image is its first or last token.

    Officially alpha is 0.1, the middle layer the 9th of CLIP's 24, the deep one that of the features; 4, 3 and 1
    anchors at 192, 128 and 64 of LLaVA-1.5's 576, the same rule for each of LLaVA-NeXT's five images (640, 320, 160 of
    2,880).

    Args:
        tokens: N of them, an image in raster order, padding anywhere.
        keep: K.
        middle_attention: [..., N], of all tokens of the tower, the class token among them, in the middle layer.
        global_attention: [..., N], the same in the deep layer.
        alpha: share of K for anchors and buffers, in [0, 1].
        width: tokens in a row of the image; None for the columns of the tokens' grid, and where they have none, for
            those of a square, as in the released code.

    Returns:
        The selection. O(N log N + alpha K N).

    Raises:
        ValueError: `alpha` is not in [0, 1], or `width` is below 1.

    Source: HiPrune (arXiv 2508.00553), as in its released code.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a share in [0, 1], got {alpha}")
    if width is not None and width < 1:
        raise ValueError(f"width must be 1 or more, got {width}")
    tier = tiers(tokens.valid, tokens.values, middle_attention, global_attention)
    usable = tier == USABLE
    anchors = best_first(jnp.where(usable, middle_attention, 0), tier)[..., : min(round(keep * alpha / 5), keep // 5)]

    count = tokens.valid.sum(-1, keepdims=True, dtype=jnp.int32)
    place = jnp.cumsum(tokens.valid, axis=-1, dtype=jnp.int32) - 1  # padding is no part of the image
    side = jnp.round(jnp.sqrt(count.astype(jnp.float32))).astype(jnp.int32)
    if width is None and tokens.grid is not None:
        *_, width = tokens.grid
    side = jnp.maximum(1, side) if width is None else jnp.full_like(side, width)
    steps = jnp.concatenate([jnp.zeros_like(side), -jnp.ones_like(side), jnp.ones_like(side), -side, side], axis=-1)
    beside = rows(place, anchors)[..., None] + steps[..., None, :]  # [..., anchors, 5]
    beside = jnp.clip(beside, 0, jnp.maximum(count - 1, 0)[..., None])
    near = (beside[..., None] == place[..., None, None, :]) & rows(usable, anchors)[..., None, None]
    chosen = usable & near.any((-3, -2))
    return Selection(best(jnp.where(usable, global_attention, 0), keep, jnp.where(chosen, USABLE + 1, tier)))
