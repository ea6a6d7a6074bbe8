"""LLaVA-PruMerge and PruMerge+ (arXiv 2403.15388): tokens that take their like in, and one for all others."""

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.ranking import USABLE, best_first, invert, tiers
from tokencarve_jax.scores.similarity import cosine
from tokencarve_jax.tokens import Selection, Tokens, headroom, rows, rows_of, within


def prumerge(
    tokens: Tokens,
    *,
    keep: int,
    class_attention: jax.Array,
    tower_keys: jax.Array,
    spatial: float = 0.0,
    nearest: int = 32,
) -> Selection:
    """K - 1 tokens by class attention, each with the sum of its 32 nearest, and one row for all that are pruned.

    A kept token becomes x_i + sum_j a_j x_j over the 32 other tokens, kept or not, whose keys are the most similar to
    its own by cosine; a is the class attention, and the sum is not normalised. One more row is sum_j a_j x_j over all
    tokens that are not kept. It stands where the pruned token with the highest attention stood, and in `assignment`
    the pruned tokens join it, each original counting once. With K = 1 that row is all there is.

    PruMerge+ (`spatial` 3/4) has a part of the kept tokens at uniform places of the raster instead: floor(3/4 (K - 1))
    of them, at floor(j M / U) of the M tokens that attention did not choose.

    Officially the count follows from each image (attention above Q3 + 1.5 IQR; about 32 of LLaVA-1.5's 576, and 144 for
    PruMerge+, whose raster has a stride of a third of the mean distance, hence 1 : 3). This is the form for a fixed
    count: 192, 128, 64 of 576, and the same for each of LLaVA-NeXT's five images (640, 320, 160 of 2,880).

    Args:
        tokens: N of them, values [..., N, D].
        keep: K, the row for the pruned ones included.
        class_attention: [..., N], of the tower's last layer, mean over heads.
        tower_keys: [..., N, d], of the tower's last layer, mean over heads.
        spatial: the share of the kept tokens from the raster, in [0, 1].
        nearest: how many others each kept token takes in.

    Returns:
        The selection, with values of its own. O(K N (d + D) + K N log 32).

    Raises:
        ValueError: `spatial` is not in [0, 1], or `nearest` is below 0.

    Source: LLaVA-PruMerge (arXiv 2403.15388), as in its released code, with these deviations: the fixed count; there
    attention and keys have their full width (C^-0.5 for scale), here they are means over heads; there the sums are
    those of the tower's features, here of the projector's output; there the row of the pruned tokens is the last one.
    """
    if not 0 <= spatial <= 1:
        raise ValueError(f"spatial must be a share in [0, 1], got {spatial}")
    if nearest < 0:
        raise ValueError(f"nearest must be 0 or more, got {nearest}")
    count = tokens.shape[-1]
    tier = tiers(tokens.valid, tokens.values, class_attention, tower_keys)
    usable = tier == USABLE
    attention = lax.stop_gradient(jnp.where(usable, class_attention, 0).astype(jnp.float32))
    on_raster = int((keep - 1) * spatial)
    if on_raster:
        tier = _with_raster(attention, tier, keep - 1 - on_raster, on_raster)
    order = best_first(attention, tier)
    indices, extra = jnp.sort(order[..., :keep], axis=-1), order[..., keep - 1 : keep]
    pruned = usable & (invert(order) >= keep - 1)
    pooled = pruned & (pruned.sum(-1, keepdims=True) > 1)  # one alone stays as it is
    row = rows_of(indices, count)
    assignment = jnp.where(pooled, rows(row, extra), row)

    is_extra = (indices == extra)[..., None]  # [..., K, 1]
    keys = jnp.where(usable[..., None], tower_keys.astype(jnp.float32), 0)
    own = indices[..., None] == jnp.arange(count, dtype=jnp.int32)
    near = _nearest(cosine(rows(keys, indices), keys), usable[..., None, :] & ~own, min(nearest, count - 1))
    takes = jnp.where(is_extra, pooled[..., None, :], near & rows(usable, indices)[..., None])
    values = tokens.values.astype(jnp.promote_types(tokens.values.dtype, jnp.float32))
    weights = jnp.where(takes, attention[..., None, :], 0).astype(values.dtype)
    finite = jnp.where(usable[..., None], values, 0)
    scale = headroom(finite)
    taken = jnp.matmul(weights, finite * scale, precision=lax.Precision.HIGHEST)
    base = jnp.where(is_extra, 0, rows(values, indices)) * scale
    changed = takes.any(-1, keepdims=True)
    kept = jnp.where(changed, within((base + taken) / scale, tokens.values.dtype), rows(tokens.values, indices))
    return Selection(indices, assignment, values=kept)


def _with_raster(attention: jax.Array, tier: jax.Array, first: int, on_raster: int) -> jax.Array:
    """The tiers with a higher one for the `first` tokens by attention, and for others at uniform places."""
    usable = tier == USABLE
    chosen = usable & (invert(best_first(attention, tier)) < first)
    others = usable & ~chosen
    place = jnp.where(others, jnp.cumsum(others, axis=-1, dtype=jnp.int32) - 1, -1)
    places = jnp.arange(on_raster, dtype=jnp.int32) * others.sum(-1, keepdims=True, dtype=jnp.int32) // on_raster
    chosen |= (place[..., :, None] == places[..., None, :]).any(-1) & others
    return jnp.where(chosen, USABLE + 1, tier)


def _nearest(similarity: jax.Array, among: jax.Array, number: int) -> jax.Array:
    """The `number` highest of each row of [..., K, N], of equals the first, [..., K, N] bool; fewer where fewer are."""
    if number == 0:
        return jnp.zeros_like(among)
    similarity = jnp.where(among, similarity, -jnp.inf)
    last = lax.top_k(similarity, number)[0][..., -1:]
    above, equal = similarity > last, similarity == last
    room = number - above.sum(-1, keepdims=True)
    return among & (above | (equal & (jnp.cumsum(equal, axis=-1) <= room)))
