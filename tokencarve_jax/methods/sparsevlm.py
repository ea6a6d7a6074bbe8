"""SparseVLM (arXiv 2410.04417): words that are about the image rate the tokens, and some of the losers are recycled."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.ranking import USABLE, best, best_first, tiers
from tokencarve_jax.tokens import Selection, Tokens, rows, rows_of


def sparsevlm(
    tokens: Tokens,
    *,
    keep: int,
    text_attention: jax.Array,
    text: jax.Array,
    text_valid: jax.Array,
    text_relevance: jax.Array | None = None,
) -> Selection:
    """The best tokens by the attention [..., T, N] of words about the image, and means of the next best.

    Raters are the question's words with more than the average share of the image (`word_shares`), all words should
    none have it. The shares [..., T] are those of the tokens that enter the decoder, whatever the layer; without
    `text_relevance` they are computed here from the tokens and the words [..., T, D], which must then be of one layer.
    Of the tokens that the raters' mean attention prunes, the best 30 % are clustered 10 : 1 by density peaks and become
    plain means. K counts both (`split`), and at most half of it are means. O(T N D + t^2 D), with t = 0.3 (N - K).

    Officially behind layers 2, 6 and 15 with 300/200/110 tokens for a budget of 192, 303/110/36 for 128, 238/48/26 for
    96 and 66/30/17 for 64, means not counted: K = 309/204/113, 312/117/39, 249/55/27 and 82/32/18 here. LLaVA-NeXT's
    640/320/160 have no settings in its first version.

    Deviations: equal densities, against which the code adds noise, go by the lower index; means stand at their
    cluster's centre, where the code puts them behind the kept tokens.
    """
    words = text_valid & jnp.isfinite(text).all(-1)
    attention = jnp.where(words[..., None], text_attention, 0)
    tier = tiers(tokens.valid, tokens.values, jnp.swapaxes(attention, -1, -2))
    usable = tier == USABLE
    values = _widened(tokens.values, usable)
    rates = _raters(values, usable, text, words, text_relevance)
    votes = jnp.where(rates[..., None] & usable[..., None, :], attention, 0).astype(jnp.float32)
    order = best_first(votes.sum(-2) / jnp.maximum(rates.sum(-1, keepdims=True), 1), tier)

    kept, candidates, means = split(tokens.shape[-1], keep)
    winners = order[..., :kept]
    if not means:
        return Selection(jnp.sort(winners, axis=-1))
    losers = jnp.sort(order[..., kept : kept + candidates], axis=-1)
    centres, joined = density_peaks(rows(values, losers), rows(usable, losers), means)
    hosts = rows(losers, centres)
    indices = jnp.sort(jnp.concatenate([winners, hosts], axis=-1), axis=-1)
    assignment = rows_of(indices, tokens.shape[-1])
    joins = (losers[..., None, :] == jnp.arange(tokens.shape[-1])[:, None]) & rows(usable, losers)[..., None, :]
    row = rows(assignment, rows(hosts, joined))  # [..., t]
    recycled = jnp.where(joins, row[..., None, :], -1).max(-1)
    return Selection(indices, jnp.maximum(assignment, recycled), weights=jnp.ones_like(tokens.sizes))


def split(count: int, keep: int) -> tuple[int, int, int]:
    """How many of N tokens are kept, how many are clustered, and to how many means, so that K are left.

    The most that can be kept beside the official numbers: 0.3 P + 1 candidates of P pruned ones, a tenth and 1 means.
    """
    fits = (means for kept in range(keep, -1, -1) if kept + (means := _means(count - kept)) <= keep)
    means = min(next(fits, keep), keep // 2)
    return keep - means, _candidates(count - keep + means), means


def _candidates(pruned: int) -> int:
    return pruned * 3 // 10 + 1


def _means(pruned: int) -> int:
    return _candidates(pruned) // 10 + 1


def sparsevlm_plus(
    tokens: Tokens,
    *,
    keep: int,
    head_attention: jax.Array,
    text: jax.Array,
    text_valid: jax.Array,
    text_relevance: jax.Array | None = None,
    heads: int = 14,
) -> Selection:
    """SparseVLM+, version 2.0 of the code: the best tokens by the raters' attention in heads that look at the image.

    The attention of a head [..., H, T, N] is divided by what rotary embedding alone would make of the distance. The 14
    heads in which raters give the tokens most count, and their mean over heads and raters decides. Raters are those of
    `sparsevlm`; nothing merges. O(H T N).

    Officially behind layers 2, 6 and 15, positions kept, with 300/200/118 tokens for a budget of 192, 238/108/60 for
    128, 246/54/28 for 96 and 66/34/20 for 64, and 14 heads in any decoder: half of 28.
    """
    words = text_valid & jnp.isfinite(text).all(-1)
    attention = jnp.where(words[..., None, :, None], head_attention, 0)
    by_token = jnp.moveaxis(attention, -1, tokens.values.ndim - 2)
    by_token = by_token.reshape(*tokens.shape, math.prod(by_token.shape[-2:]))
    tier = tiers(tokens.valid, tokens.values, by_token)
    usable = tier == USABLE
    rates = _raters(_widened(tokens.values, usable), usable, text, words, text_relevance)
    votes = jnp.where(rates[..., None, :, None] & usable[..., None, None, :], attention, 0).astype(jnp.float32).sum(-2)
    looking = best_first(votes.sum(-1))[..., :heads]
    return Selection(best(rows(votes, looking).sum(-2), keep, tier))


def word_shares(values: jax.Array, usable: jax.Array, text: jax.Array, words: jax.Array) -> jax.Array:
    """How much each word [..., T, D] has of the tokens [..., N, D]: [..., T] float32 or wider, in all 1.

    A token deals a softmax of its inner products over the words that count; a share is the mean over usable tokens.
    """
    values = _widened(values, usable)
    text = jnp.where(words[..., None], text, 0).astype(values.dtype)
    likeness = jnp.matmul(values, jnp.swapaxes(text, -1, -2), precision=lax.Precision.HIGHEST)  # [..., N, T]
    likeness = jnp.where(words[..., None, :], likeness, jnp.finfo(likeness.dtype).min)
    dealt = jnp.where(usable[..., None], jax.nn.softmax(likeness, axis=-1), 0).sum(-2)
    return jnp.where(words, dealt / usable.sum(-1, keepdims=True).clip(1).astype(dealt.dtype), 0)


def _widened(values: jax.Array, usable: jax.Array) -> jax.Array:
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return lax.stop_gradient(jnp.where(usable[..., None], wide, 0))


def _raters(
    values: jax.Array, usable: jax.Array, text: jax.Array, words: jax.Array, shares: jax.Array | None
) -> jax.Array:
    """Which words [..., T] are about the image."""
    shares = word_shares(values, usable, text, words) if shares is None else jnp.where(words, shares, 0)
    above = words & (shares * words.sum(-1, keepdims=True) > shares.sum(-1, keepdims=True))
    return jnp.where(above.any(-1, keepdims=True), above, words)


def density_peaks(points: jax.Array, counts: jax.Array, clusters: int) -> tuple[jax.Array, jax.Array]:
    """Centres [..., C] among points [..., t, D], ascending, and for each point the nearest of them, 0..C-1 [..., t].

    A centre is dense (near its C nearest points, itself one of them) and far from any denser one. Points that do not
    count are centres last of all, and nothing is near them.
    """
    # Differences and not inner products: copies are at distance 0, and so is every other distance of theirs the same.
    squares = jnp.square(points[..., :, None, :] - points[..., None, :, :]).mean(-1)
    squares = jnp.where(counts[..., None, :] & counts[..., None], squares, jnp.inf)
    near = jnp.sort(squares, axis=-1)[..., :clusters]
    there = jnp.isfinite(near)
    density = jnp.exp(-jnp.where(there, near, 0).sum(-1) / jnp.maximum(there.sum(-1), 1))
    index = jnp.arange(points.shape[-2])
    mine, other = density[..., :, None], density[..., None, :]
    denser = (other > mine) | ((other == mine) & (index < index[:, None]))
    distance = jnp.sqrt(jnp.where(jnp.isfinite(squares), squares, 0))
    farthest = distance.max((-2, -1))[..., None]
    apart = jnp.where(denser & jnp.isfinite(squares), distance, farthest[..., None]).min(-1)
    centres = best(apart * density, clusters, jnp.where(counts, USABLE, 0))
    to_centres = jnp.swapaxes(rows(squares, centres), -1, -2)  # [..., t, C]
    own = index[:, None] == centres[..., None, :]
    return centres, jnp.where(own.any(-1), own.argmax(-1), to_centres.argmin(-1)).astype(jnp.int32)
