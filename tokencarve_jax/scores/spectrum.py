"""The few directions that dwarf all others, found by subspace iteration, so that float32 is left for the rest."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tokencarve_jax.scores.decompositions import eigh, orthonormal_columns


def dominating_directions(
    tokens: jax.Array,
    *,
    width: int = 8,
    products: int = 4,
    tolerance: float = 1e-5,
    orthonormal: Callable[[jax.Array], jax.Array] = orthonormal_columns,
) -> tuple[jax.Array, jax.Array]:
    """Right singular vectors of tokens [..., N, D] that stand far above the others.

    A common mean, a few massive channels or one massive token put one singular value far above the rest. Whatever is
    computed in float32 after that is relative to the large one: the Gram matrix squares the ratio, and the rest
    drowns in rounding. Such a direction is also the one that a few steps of subspace iteration find to full accuracy.
    Taken off first, it leaves the rest at a scale of its own. A direction that has not converged is not
    dominating, and is left in.

    Args:
        tokens: [..., N, D] float32 or float64.
        width: How many directions are sought at a time.
        products: How many times the sought subspace is multiplied with H or H^T, in turns, H last.
        tolerance: A direction counts as found when `|H H^T u - s^2 u| < tolerance * s^2`, u its left vector. A looser
            one would put its own error into scores that are better without.
        orthonormal: Gives a basis of the span of [..., N, width].

    Returns:
        The directions V [..., D, width] and the tokens along them H V [..., N, width]; columns not found are zero.
    """
    n, d = tokens.shape[-2:]
    width = min(width, n, d)
    # Any fixed start that is in no special position, on the side that makes H the last factor.
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((d if products % 2 else n, width)))
    start = jnp.broadcast_to(jnp.asarray(basis, tokens.dtype), (*tokens.shape[:-2], *basis.shape))
    left = orthonormal(made(inner(tokens, transpose(start)))) if products % 2 else start
    for _ in range(products // 2):
        left = orthonormal(made(inner(tokens, _across(left, tokens))))
    rows = _across(left, tokens)
    rotation, _ = eigh(inner(rows, rows))
    left, rows = matmul(left, rotation), matmul(transpose(rotation), rows)  # u and s v^T
    size = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    rows = rows / jnp.where(size > 0, size, 1)
    along = made(inner(tokens, rows))
    # |H v - s u|, for H H^T u is s H v. What passes is orthogonal to the larger ones well within rounding of the rest.
    residual = jnp.linalg.norm(along - transpose(size) * left, axis=-2, keepdims=True)
    found = residual < tolerance * transpose(size)
    return transpose(jnp.where(transpose(found), rows, 0)), jnp.where(found, along, 0)


def without(tokens: jax.Array, directions: jax.Array, along: jax.Array) -> jax.Array:
    """H - H V V^T, from the two that `dominating_directions` gives.

    Column by column, which XLA fuses into one pass over the tokens: a product would write another [N, D] first.
    """
    for column in range(directions.shape[-1]):
        tokens = tokens - along[..., :, column, None] * directions[..., None, :, column]
    return tokens


# XLA would rewrite the transpose of a small product as a product with the large matrix transposed, which on a CPU is 15
# times slower, and would compute an operand once for every product that reads a slice of it. Not past this.
made = lax.optimization_barrier


def _across(columns: jax.Array, tokens: jax.Array) -> jax.Array:
    """A^T H for a few columns A."""
    return made(matmul(made(transpose(columns)), tokens))


def transpose(matrix: jax.Array) -> jax.Array:
    """Swap the last two axes."""
    return jnp.swapaxes(matrix, -1, -2)


def matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix product at full precision: the default on accelerators is TF32 or bfloat16, too coarse for a score."""
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def gram_matrix(rows: jax.Array, blocks: int = 4) -> jax.Array:
    """Inner products of rows, [..., N, D] -> [..., N, N]; those above the diagonal blocks are copies: 3/8 are saved."""
    n = rows.shape[-2]
    ends = [n * i // blocks for i in range(blocks + 1)]
    parts = made([rows[..., start:end, :] for start, end in itertools.pairwise(ends) if end > start])
    lower = [[inner(part, other) for other in parts[: last + 1]] for last, part in enumerate(parts)]
    whole = [line + [transpose(below[last]) for below in lower[last + 1 :]] for last, line in enumerate(lower)]
    return jnp.concatenate([jnp.concatenate(line, axis=-1) for line in whole], axis=-2)


def inner(left: jax.Array, right: jax.Array) -> jax.Array:
    """Inner products of the rows of two matrices, by a contraction that needs no transposed copy of either."""
    axes, batch = ((left.ndim - 1,),) * 2, (tuple(range(left.ndim - 2)),) * 2
    return lax.dot_general(left, right, (axes, batch), precision=lax.Precision.HIGHEST)
