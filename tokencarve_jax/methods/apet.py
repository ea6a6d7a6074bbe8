"""ApET (arXiv 2602.19870): tokens that a few of them do not explain, without any attention."""

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.ranking import USABLE, best_first, invert, tiers
from tokencarve_jax.scores.similarity import cosine, unit
from tokencarve_jax.tokens import Selection, Tokens, gather, rows, rows_of

_Sampled = tuple[jax.Array, jax.Array, jax.Array]  # the next one, nearness to those before, and what they leave of all


def apet(tokens: Tokens, *, keep: int, key: jax.Array, basis: int = 10) -> Selection:
    """The K tokens that are farthest from the span of a basis stand; the last rows of them hold that basis instead.

    The basis are M tokens by farthest point sampling: one at random, then ever the one that is farthest from all so
    far. A token's error is its distance to what linear combinations of the basis reach. Of the K tokens with the
    largest errors the first K - M stand, and every token below the K joins the one of these that is most similar by
    cosine; a group becomes its mean. At the places of the other M stand the basis tokens' values, in the order of
    sampling along the raster. M is K - 1 at most; where K or fewer tokens can be used, all of them stand as they are.

    Officially M is 10, and there are two cuts, on the tower's output and before layer 16 of LLaVA-1.5: 288 and 96
    tokens (192 on average), 96 and 32 (64). That is "apet@tower=288 apet@16=96".

    Args:
        tokens: N of them, values [..., N, D].
        keep: K.
        key: a PRNG key; its one number says where in the raster the first basis token stands, in all sets alike.
        basis: M, at least 1.

    Returns:
        The selection, with values of its own. O(M N D + K N D).

    Raises:
        ValueError: `basis` is below 1.

    Source: ApET (arXiv 2602.19870), as in its released code, with these deviations: errors are exact, there of least
    squares with 1e-5 on the diagonal; rows stand in raster order; before a decoder layer the authors fill the basis in
    by falling error, here along the raster as on the tower's output.
    """
    if basis < 1:
        raise ValueError(f"basis must be 1 or more, got {basis}")
    basis = min(basis, keep - 1)
    count = tokens.shape[-1]
    tier = tiers(tokens.valid, tokens.values)
    usable = tier == USABLE
    wide = tokens.values.astype(jnp.promote_types(tokens.values.dtype, jnp.float32))
    finite = lax.stop_gradient(jnp.where(usable[..., None], wide, 0))
    sampled, error = _basis(finite, usable, jax.random.uniform(key), basis)

    order = best_first(jnp.where(usable, error, 0), tier)
    place, hosts = invert(order), order[..., : keep - basis]
    joins = usable & (place >= keep)
    filled = (place >= keep - basis) & (place < keep) & joins.any(-1, keepdims=True)
    indices = jnp.sort(order[..., :keep], axis=-1)
    row = rows_of(indices, count)
    host = rows(hosts, cosine(finite, rows(finite, hosts)).argmax(-1))
    left = gather(tokens, Selection(indices, jnp.where(joins, rows(row, host), row)))
    if basis == 0:
        return Selection(indices, left.assignment)
    fill = rows(filled, indices)
    which = jnp.maximum(jnp.cumsum(fill, axis=-1) - 1, 0)
    values = jnp.where(fill[..., None], rows(rows(tokens.values, sampled), which), left.tokens.values)
    return Selection(indices, left.assignment, values=values)


def first_place(drawn: jax.Array, count: jax.Array) -> jax.Array:
    """Which of `count` tokens a number in [0, 1) is: 0 to count - 1, int32."""
    return jnp.clip((drawn * count).astype(jnp.int32), 0, jnp.maximum(count - 1, 0))


def _basis(values: jax.Array, usable: jax.Array, drawn: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """Indices [..., M] of a basis of values [..., N, D], and each token's distance [..., N] to its span."""
    peak = jnp.abs(values).max((-2, -1), keepdims=True)
    values = values / jnp.where(peak > 0, peak, 1)  # no square overflows
    rounding = 8 * jnp.finfo(values.dtype).eps
    first = first_place(drawn, usable.sum(-1, keepdims=True))
    start = (usable & (jnp.cumsum(usable, axis=-1) - 1 == first)).argmax(-1, keepdims=True)
    nearest = jnp.where(usable, jnp.inf, -1).astype(values.dtype)

    def sample(state: _Sampled, _: None) -> tuple[_Sampled, jax.Array]:
        pick, nearest, rest = state
        point, beyond = rows(values, pick), rows(rest, pick)  # [..., 1, D]
        nearest = jnp.minimum(nearest, jnp.square(values - point).sum(-1))
        new = jnp.linalg.norm(beyond, axis=-1) > rounding * jnp.linalg.norm(point, axis=-1)
        direction = jnp.where(new[..., None], unit(beyond), 0)
        rest = rest - (rest * direction).sum(-1, keepdims=True) * direction  # Gram-Schmidt, all tokens at once
        return (nearest.argmax(-1, keepdims=True), nearest, rest), pick

    (_, _, rest), picks = lax.scan(sample, (start, nearest, values), length=number)
    picks = jnp.moveaxis(picks[..., 0], 0, -1).astype(jnp.int32)
    own = (picks[..., :, None] == jnp.arange(values.shape[-2])).any(-2)
    return picks, jnp.where(own, 0, jnp.linalg.norm(rest, axis=-1))
