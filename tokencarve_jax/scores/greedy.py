"""Greedy selection: one loop that takes the best token, tells the state about it, and asks again.

A method brings a kernel of similarities, made once, a state of O(N) numbers and two small functions. Axis letters as in
`tokens`, and R rows to cover.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.ranking import USABLE
from tokencarve_jax.scores.similarity import unit
from tokencarve_jax.scores.spectrum import gram_matrix

State = TypeVar("State")


def greedy(
    tier: jax.Array,
    keep: int,
    state: State,
    gain: Callable[[State], jax.Array],
    absorb: Callable[[State, jax.Array, jax.Array], State],
) -> jax.Array:
    """Take the token with the highest gain, `keep` times.

    Usable tokens go first; once none is left, the other valid ones and then padding follow in the order of their
    indices. Equal gains go to the lower index; gains that differ by rounding alone, as those of copies may, go as they
    were rounded. A gain that is not a number counts as the lowest. One compiled loop of `keep` steps, whatever the
    method.

    Args:
        tier: [..., N] from `ranking.tiers`.
        keep: how many, at most N.
        state: a pytree of arrays, all that the gains depend on.
        gain: state -> [..., N].
        absorb: (state, step, index [...]) -> the state after the token at `index` was taken as number `step`.

    Returns:
        The indices, ascending: [..., K] int32.
    """
    place = lax.broadcasted_iota(jnp.int32, tier.shape, tier.ndim - 1)

    def take(carry: tuple[jax.Array, State], step: jax.Array) -> tuple[tuple[jax.Array, State], jax.Array]:
        left, state = carry
        score = gain(state)
        largest = jnp.finfo(score.dtype).max
        score = jnp.minimum(jnp.where(score > -largest, score, -largest), largest)  # numbers, and finite ones
        score = jnp.where(tier == USABLE, score, 0)
        score = jnp.where(left == left.max(-1, keepdims=True), score, -jnp.inf)
        index = score.argmax(-1).astype(jnp.int32)
        left = jnp.where(place == index[..., None], -1, left)
        return (left, absorb(state, step, index)), index

    _, taken = lax.scan(take, (tier, state), jnp.arange(keep, dtype=jnp.int32))
    return jnp.sort(jnp.moveaxis(taken, 0, -1), axis=-1)


def at(array: jax.Array, index: jax.Array) -> jax.Array:
    """Entry [...] of [..., N] at `index` [...]."""
    return jnp.take_along_axis(array, index[..., None], axis=-1)[..., 0]


def row(matrix: jax.Array, index: jax.Array) -> jax.Array:
    """Row [..., R] of [..., N, R] at `index` [...]."""
    return jnp.take_along_axis(matrix, index[..., None, None], axis=-2)[..., 0, :]


def prepare(rows: jax.Array, usable: jax.Array) -> jax.Array:
    """Rows [..., N, D] at length 1 in float32 or wider; those that are not `usable` [..., N] become zero."""
    wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    return unit(jnp.where(usable[..., None], wide, 0))


def similarity(rows: jax.Array, usable: jax.Array) -> jax.Array:
    """Cosine similarity of the usable rows among each other: [..., N, N], O(N^2 D).

    Symmetric, with exact ones on the diagonal; zero wherever a row of zeros or one that is not usable takes part. Five
    eighths of the products are computed.
    """
    rows = prepare(rows, usable)
    count = rows.shape[-2]
    line, column = (lax.broadcasted_iota(jnp.int32, (count, count), axis) for axis in (0, 1))
    full = gram_matrix(rows)
    full = jnp.where(line > column, full, jnp.swapaxes(full, -1, -2))  # to the last bit
    return jnp.where(line == column, (rows != 0).any(-1)[..., None].astype(full.dtype), full)


def distance(rows: jax.Array, usable: jax.Array) -> jax.Array:
    """1 - cosine similarity, [..., N, N]."""
    return 1 - similarity(rows, usable)


def farthest(
    tier: jax.Array, keep: int, distance: jax.Array, *, first: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """The first token has the highest `first`, every other one the largest distance to its nearest among the taken.

    Args:
        tier: [..., N] from `ranking.tiers`.
        keep: how many.
        distance: [..., N, N].
        first: [..., N], what decides about the first token.
        weight: [..., N] that multiplies the distances, or None.

    Returns:
        The indices, ascending: [..., K] int32. O(K N).
    """

    def gain(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        begun, nearest = state
        return jnp.where(begun, nearest if weight is None else weight * nearest, first)

    def absorb(state: tuple[jax.Array, jax.Array], step: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.ones_like(state[0]), jnp.minimum(state[1], row(distance, index))

    start = jnp.full(tier.shape, 2, distance.dtype)  # as far as can be
    return greedy(tier, keep, (jnp.zeros((), bool), start), gain, absorb)


def covering(tier: jax.Array, keep: int, kernel: jax.Array, *, weight: jax.Array | None = None) -> jax.Array:
    """Tokens that cover rows best: each step takes the one that raises the coverage most.

    How well row r is covered by a token v is `kernel[v, r]`, by several tokens their largest, by none 0.

    Args:
        tier: [..., N] from `ranking.tiers`.
        keep: how many.
        kernel: [..., N, R].
        weight: [..., N] that multiplies the gains, or None.

    Returns:
        The indices, ascending: [..., K] int32. O(K N R).
    """

    def gain(covered: jax.Array) -> jax.Array:
        more = jnp.maximum(kernel - covered[..., None, :], 0).sum(-1)
        return more if weight is None else weight * more

    def absorb(covered: jax.Array, step: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.maximum(covered, row(kernel, index))

    start = jnp.zeros((*kernel.shape[:-2], kernel.shape[-1]), kernel.dtype)
    return greedy(tier, keep, start, gain, absorb)


def determinantal(tier: jax.Array, keep: int, kernel: jax.Array) -> jax.Array:
    """Tokens whose part of the kernel has a large determinant: each step takes the one that raises it most.

    Fast greedy MAP inference: rows of an incremental Cholesky factor. A remainder within rounding of zero (8 epsilon of
    the token's own diagonal) counts as zero.

    Args:
        tier: [..., N] from `ranking.tiers`.
        keep: how many.
        kernel: [..., N, N], symmetric and positive semidefinite.

    Returns:
        The indices, ascending: [..., K] int32. O(K^2 N), with a state of [..., K, N].
    """
    whole = jnp.diagonal(kernel, axis1=-2, axis2=-1)
    least = 8 * jnp.finfo(kernel.dtype).eps * whole
    Left = tuple[jax.Array, jax.Array]  # what is left of the diagonal [..., N], and the factor [..., K, N]

    def gain(state: Left) -> jax.Array:
        return jnp.where(state[0] > least, state[0], 0)

    def absorb(state: Left, step: jax.Array, index: jax.Array) -> Left:
        rest, factor = state
        own = at(gain(state), index)[..., None]
        along = jnp.take_along_axis(factor, index[..., None, None], axis=-1)[..., 0]
        known = jnp.einsum("...k,...kn->...n", along, factor, precision=lax.Precision.HIGHEST)
        new = jnp.where(own > 0, (row(kernel, index) - known) * lax.rsqrt(jnp.where(own > 0, own, 1)), 0)
        factor = lax.dynamic_update_index_in_dim(factor, new[..., None, :], step, factor.ndim - 2)
        return rest - new**2, factor

    factor = jnp.zeros((*tier.shape[:-1], keep, tier.shape[-1]), kernel.dtype)
    return greedy(tier, keep, (whole, factor), gain, absorb)
