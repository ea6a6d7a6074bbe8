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
    class_attention: jax.Array,
    alpha: float = 0.1,
    width: int | None = None,
) -> Selection:
    """Anchors of a middle layer, buffers beside them, and registers of a deep layer; nothing merges.

    Anchors are the round(alpha K / 5) tokens with the highest attention in the middle layer, buffers their neighbours
    to the left, right, above and below, registers the tokens with the highest attention in the deep layer that are
    neither, up to K in all.

    Officially alpha is 0.1, the middle layer the 9th of CLIP's 24, the deep one that of the features; 4, 3 and 1
    anchors at 192, 128 and 64 of LLaVA-1.5's 576, the same rule for each of LLaVA-NeXT's five images (640, 320, 160 of
    2,880).

    Args:
        tokens: N of them, an image in raster order, padding anywhere.
        keep: K.
        middle_attention: [..., N], of the middle layer.
        class_attention: [..., N], of the deep layer.
        alpha: share of K for anchors and buffers, in [0, 1].
        width: tokens in a row of the image, where it is not square.

    Returns:
        The selection. O(N log N + alpha K N).

    Raises:
        ValueError: `alpha` is not in [0, 1], or `width` is below 1.

    Source: HiPrune (arXiv 2508.00553). Its paper and code average the attention of all tokens to one, where towers
    without a class token can follow: pass that as both attentions to have it. The code also takes the last token of the
    row above for a left neighbour and the image's first or last token for one that is outside: here neither is.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a share in [0, 1], got {alpha}")
    if width is not None and width < 1:
        raise ValueError(f"width must be 1 or more, got {width}")
    tier = tiers(tokens.valid, tokens.values, middle_attention, class_attention)
    usable = tier == USABLE
    anchors = best_first(jnp.where(usable, middle_attention, 0), tier)[..., : min(round(keep * alpha / 5), keep // 5)]

    place = jnp.cumsum(tokens.valid, axis=-1, dtype=jnp.int32) - 1  # padding is no part of the image
    side = jnp.round(jnp.sqrt(tokens.valid.sum(-1, keepdims=True).astype(jnp.float32))).astype(jnp.int32)
    side = jnp.maximum(1, side) if width is None else jnp.full_like(side, width)
    row, column = place // side, place % side
    apart = jnp.abs(rows(row, anchors)[..., :, None] - row[..., None, :])
    apart += jnp.abs(rows(column, anchors)[..., :, None] - column[..., None, :])
    near = ((apart <= 1) & rows(usable, anchors)[..., None]).any(-2)
    return Selection(best(jnp.where(usable, class_attention, 0), keep, jnp.where(usable & near, USABLE + 1, tier)))
