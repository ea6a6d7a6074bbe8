"""The information score from matrix products: leading directions as they are, the rest by what is expected of it.

An eigen-decomposition of all N tokens takes milliseconds on an accelerator, where the products take microseconds. Here
the largest one is of 240 x 240. Write C_i as a sum over the leading singular directions, by Nystrom's approximation,
and over all others, the tail. Rows of a tail are spread over many directions of similar size, so that u_ij behaves like
a normal variable of variance v_i: E |u_ij| = sqrt(2 v_i / pi), and the sum over the tail is

    sum_j sqrt(2 v_ij / pi) s_j  ~  sqrt(2 / pi * sum_j v_ij s_j * sum_j s_j),

which by Cauchy and Schwarz is an upper bound, met where v_ij is the same for all j. Both sums are of the square root of
the tail's Gram matrix T, its diagonal and its trace. The quadratic tangent of the square root at the tail's mean
eigenvalue t, by energy, gives them: (3 T / sqrt(t) - T^2 / sqrt(t)^3) / 2, and the diagonals of T and T^2 cost nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tokencarve_jax.scores.decompositions import cholesky, eigh, solve_transposed
from tokencarve_jax.scores.spectrum import gram_matrix, made, matmul, transpose

SOUGHT = 240
"""Directions that are sought: the size of the largest eigen-decomposition. To find 99 % of the
best tokens in what attention adds in trained models takes about as many (docs/performance.md)."""
LEADING = 204
"""Those of them that count as found: the last ones have not converged."""


def orthonormal(columns: jax.Array) -> jax.Array:
    """A basis of the span of [..., N, K], by Cholesky's decomposition of its Gram matrix, twice.

    What is added to the diagonal, so that it can be decomposed however close the columns are to each other, leaves
    some work to the second time (Fukaya et al., shifted Cholesky QR, 2020).
    """
    for _ in range(2):
        gram = matmul(transpose(columns), columns)
        columns = _over_root(columns, gram, _shift(gram))
    return columns


def _shift(gram: jax.Array) -> jax.Array:
    """What has to be added to a diagonal [..., K, K], so that rounding leaves no eigenvalue below zero: [..., 1, 1]."""
    # Rounding is relative to the largest eigenvalue, which the largest row sum bounds. Columns of zeros have none.
    largest = jnp.abs(gram).sum(-1).max(-1)[..., None, None]
    return jnp.maximum(10 * jnp.finfo(gram.dtype).eps * largest, jnp.finfo(gram.dtype).tiny)


def _over_root(columns: jax.Array, gram: jax.Array, shift: jax.Array) -> jax.Array:
    """`columns` L^-T, where L L^T is the shifted Gram matrix."""
    triangle = cholesky(gram + shift * jnp.eye(gram.shape[-1], dtype=gram.dtype))
    return made(solve_transposed(triangle, columns))


def leading(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The `LEADING` eigenpairs of a symmetric positive semidefinite matrix G [..., N, N], N > `SOUGHT`.

    By Nystrom's approximation G Q (Q^T G Q)^-1 Q^T G, with a basis Q of a first product with G: as near as Q^T G Q
    would be after half a product more (Tropp et al., fixed-rank approximation from streaming data, 2017, algorithm 3).

    Returns:
        Eigenvectors times the roots of their eigenvalues [..., N, LEADING], and eigenvalues [..., LEADING], ascending.
        Where the eigenvalues of neighbours are close, the last ones are mixtures of them.
    """
    n = gram.shape[-1]
    size = jnp.diagonal(gram, axis1=-2, axis2=-1).sum(-1)[..., None, None]
    inverse = 1 / jnp.where(size > 0, size, 1)  # products of very small columns would be lost
    # The first product, with a fixed start in no special position: a 1 or -1 in each row, in one column after another.
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], size=n), gram.dtype)
    signed = jnp.pad(gram * (inverse * signs), [*[(0, 0)] * (gram.ndim - 1), (0, -n % SOUGHT)])
    basis = orthonormal(made(signed.reshape(*gram.shape[:-1], -1, SOUGHT).sum(-2)))
    product = made(matmul(gram, basis))
    core = matmul(transpose(basis), product)
    shift = _shift(core)  # of G itself: its eigenvalues are larger by that much, until the end
    root = _over_root(product + shift * basis, core, shift)
    rotation, squares = eigh(matmul(transpose(root), root))
    squares, rotation = squares[..., -LEADING:], rotation[..., -LEADING:]
    values = jnp.maximum(squares - shift[..., 0], 0)
    scale = jnp.sqrt(values / jnp.where(values > 0, squares, 1))
    return matmul(root, rotation * scale[..., None, :]), values


def by_subspace(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Score and squared norms of the rows [..., N] of tokens [..., N, D], both sides above `SOUGHT`."""
    n, d = tokens.shape[-2:]
    wide = n < d
    gram = gram_matrix(tokens if wide else transpose(tokens))
    along, values = leading(gram)
    rest = gram - gram_matrix(along)
    if wide:
        squares = jnp.diagonal(gram, axis1=-2, axis2=-1)
        first, second = jnp.diagonal(rest, axis1=-2, axis2=-1), jnp.square(rest).sum(-1)
    else:
        squares = jnp.square(tokens).sum(-1)
        vectors = along / jnp.sqrt(jnp.where(values > 0, values, 1))[..., None, :]
        along = matmul(tokens, vectors)
        tokens = made(tokens - matmul(along, transpose(vectors)))  # else what T keeps of the large ones would count
        first, second = jnp.square(tokens).sum(-1), (matmul(tokens, rest) * tokens).sum(-1)
    return jnp.abs(along).sum(-1) + _tail(jnp.maximum(first, 0), second), squares


def _tail(first: jax.Array, second: jax.Array) -> jax.Array:
    """What is expected of the rest, from the diagonals of T and T^2, [..., N] each."""
    energy = first.sum(-1, keepdims=True)
    mean = second.sum(-1, keepdims=True) / jnp.where(energy > 0, energy, 1)
    mean = jnp.where(mean > 0, mean, 1)
    root = (3 * first - second / mean) / (2 * jnp.sqrt(mean))
    root = jnp.maximum(root, 0)
    return jnp.sqrt(2 / np.pi * root * root.sum(-1, keepdims=True))
