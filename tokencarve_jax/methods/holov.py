"""HoloV (arXiv 2510.02912): every part of the image gets a share of the budget, by attention and variety within it."""

import math

import jax
import jax.numpy as jnp

from tokencarve_jax.scores.ranking import USABLE, best, best_first, invert, tiers
from tokencarve_jax.scores.similarity import cosine
from tokencarve_jax.tokens import Selection, Tokens, rows

_ATTENTION_SCALE = 1e3
_SMALL = 1e-6


def holov(
    tokens: Tokens, *, keep: int, class_attention: jax.Array, crops: int = 16, diversity: float = 0.09
) -> Selection:
    """A quota for each crop of the image, and within a crop the tokens with the highest class attention.

    The N tokens are cut into 16 crops of N / 16 consecutive ones (stripes of the raster; where 16 does not divide N,
    the first crops have one more). A token's score is its attention, plus 0.09 times the variance of its cosine
    similarities to the others of its crop, the variance brought to the attention's scale crop by crop. A crop's quota
    is its share of the crops' mean scores, floor(K share), and what is left of K goes to the highest shares, one each.

    Officially 16 crops and 0.09 at every budget: 192, 128 and 64 of LLaVA-1.5's 576; of LLaVA-NeXT's up to 2,880 (640,
    320 and 160) the images are cut together as one row of tokens.

    Brought to the attention's scale, the variance has the same mean in every crop, relative to the attention, unless it
    is near 1e-6: the shares are those of the crops' mean attention, except for crops of nearly orthogonal tokens.

    Args:
        tokens: N of them in raster order, values [..., N, D].
        keep: K.
        class_attention: [..., N], mean over heads.
        crops: how many crops.
        diversity: the weight of the variance.

    Returns:
        The selection, nothing merges. O(N^2 D / crops + N log N).

    Raises:
        ValueError: `crops` is below 1.

    Source: HoloV (arXiv 2510.02912), as in its released code, with three deviations: where a quota is larger than its
    crop, the places that are left go to the highest attention in other crops (there: rows of zeros); a crop of one
    token scores on the scale of the others; rows stand in raster order and not by attention within a crop.
    """
    if crops < 1:
        raise ValueError(f"crops must be 1 or more, got {crops}")
    count = tokens.shape[-1]
    tier = tiers(tokens.valid, tokens.values, class_attention)
    usable = tier == USABLE
    attention = jnp.where(usable, class_attention, 0).astype(jnp.float32)

    # Crops of the usable tokens, brought to the front; the slots that a crop does not need are masked.
    at = best_first(jnp.zeros(tokens.shape), tier)
    number = jnp.arange(crops)
    each, more = jnp.divmod(usable.sum(-1, keepdims=True), crops)
    start, size = number * each + jnp.minimum(number, more), each + (number < more)  # [..., crops]
    slots = jnp.arange(-(-count // crops))
    inside = slots < size[..., None]  # [..., crops, M]
    where = jnp.minimum(start[..., None] + slots, count - 1)
    members = rows(at, where.reshape(*where.shape[:-2], math.prod(where.shape[-2:])))
    finite = jnp.where(usable[..., None], tokens.values.astype(jnp.float32), 0)
    cut = rows(finite, members).reshape(*where.shape, finite.shape[-1])
    told = _ATTENTION_SCALE * jnp.where(inside, rows(attention, members).reshape(where.shape), 0)
    scores = _crop_scores(cosine(cut, cut), told, inside, size, diversity)

    shares = scores / (scores.sum(-1, keepdims=True) + _SMALL)
    quotas = jnp.maximum(jnp.floor(shares * keep), 0).astype(jnp.int32)
    rest = keep - quotas.sum(-1, keepdims=True)
    quotas += invert(best_first(shares, (size > 0).astype(jnp.int32))) < rest

    crop = (rows(invert(at), jnp.broadcast_to(jnp.arange(count), tokens.shape))[..., None] >= start[..., None, :]).sum(
        -1
    ) - 1
    by_crop = best_first(attention, jnp.where(usable, crops - crop, tier - USABLE))
    place = invert(by_crop) - rows(start, crop)  # in its crop, by attention
    chosen = usable & (place < rows(quotas, crop))
    return Selection(best(attention, keep, jnp.where(chosen, USABLE + 1, tier)))


def _crop_scores(
    similarity: jax.Array, attention: jax.Array, inside: jax.Array, size: jax.Array, diversity: float
) -> jax.Array:
    """The mean score of each crop's tokens: [..., crops] from [..., crops, M, M] and [..., crops, M]."""
    full = jnp.maximum(size, 1)[..., None]
    others = jnp.maximum(size - 1, 1)[..., None]
    pair = inside[..., :, None] & inside[..., None, :]
    similarity = jnp.where(pair & ~jnp.eye(inside.shape[-1], dtype=bool), similarity, 0)
    mean = similarity.sum(-1) / others
    # The token itself is one of the terms, at similarity zero, as in the released code.
    spread = jnp.where(pair, jnp.square(similarity - mean[..., None]), 0).sum(-1) / others
    scale = (jnp.abs(attention).sum(-1, keepdims=True) / full) / (spread.sum(-1, keepdims=True) / full + _SMALL)
    return ((attention + diversity * spread * scale).sum(-1, keepdims=True) / full)[..., 0]
