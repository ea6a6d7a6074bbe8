"""The information score from matrix products: leading directions as they are, the rest by what is expected of it.

An eigen-decomposition of all N tokens takes milliseconds on an accelerator, where the products take microseconds. Here
the largest one is of 128 x 128. Write C_i as a sum over the leading singular directions, found by subspace iteration,
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
from jax import lax

from tokencarve_jax.scores.spectrum import gram_matrix, inner, made, matmul, transpose

SOUGHT = 128
"""Directions in the subspace that is iterated: the size of the largest eigen-decomposition."""
LEADING = 104
"""Those of them that count as found: the last ones have not converged."""
_STEPS = 2


def orthonormal(columns: jax.Array) -> jax.Array:
    """A basis of the span of [..., N, K], by Cholesky's decomposition of its Gram matrix, twice.

    A multiple of the identity is added, so that it can be decomposed however close the columns are to each other; what
    that leaves to be done the second time does (Fukaya et al., shifted Cholesky QR, 2020).
    """
    gram = matmul(transpose(columns), columns)
    # Rounding is relative to the largest eigenvalue, which no sum along a row is below. Columns of zeros have none.
    largest = jnp.abs(gram).sum(-1).max(-1)[..., None, None]
    columns = _cholesky_qr(columns, gram, jnp.maximum(largest, jnp.finfo(gram.dtype).tiny / jnp.finfo(gram.dtype).eps))
    return _cholesky_qr(columns, matmul(transpose(columns), columns), 1)


def _cholesky_qr(columns: jax.Array, gram: jax.Array, largest: jax.Array | int) -> jax.Array:
    """One time, with the Gram matrix of the columns and a bound of its eigenvalues."""
    identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    shifted = gram + 10 * jnp.finfo(gram.dtype).eps * largest * identity
    triangle = lax.linalg.cholesky(shifted, symmetrize_input=False)
    inverse = lax.linalg.triangular_solve(triangle, jnp.broadcast_to(identity, gram.shape), left_side=True, lower=True)
    return made(matmul(columns, transpose(made(inverse))))


def leading(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The `LEADING` eigenpairs of a symmetric positive semidefinite matrix [..., N, N], N > `SOUGHT`.

    Returns:
        Eigenvectors [..., N, LEADING] and eigenvalues [..., LEADING], ascending. Where the eigenvalues of neighbours
        are close, the last ones are mixtures of them.
    """
    n = gram.shape[-1]
    size = jnp.diagonal(gram, axis1=-2, axis2=-1).sum(-1)[..., None, None]
    inverse = 1 / jnp.where(size > 0, size, 1)  # products of very small columns would be lost
    # The first product, with a fixed start in no special position: a 1 or -1 in each row, in one column after another.
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], size=n), gram.dtype)
    signed = jnp.pad(gram * (inverse * signs), [*[(0, 0)] * (gram.ndim - 1), (0, -n % SOUGHT)])
    columns = signed.reshape(*gram.shape[:-1], -1, SOUGHT).sum(-2)
    for _ in range(_STEPS - 1):
        columns = inverse * matmul(gram, orthonormal(made(columns)))
    basis = orthonormal(made(columns))
    small = inner(transpose(basis), transpose(made(matmul(gram, basis))))
    rotation, values = lax.linalg.eigh(small, lower=True, symmetrize_input=False)
    return matmul(basis, rotation[..., -LEADING:]), jnp.maximum(values[..., -LEADING:], 0)


def by_subspace(tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The score of tokens [..., N, D], both sides above `SOUGHT`.

    Returns:
        Score, squared norms of the rows, and the score's variance, [..., N] each: that of |u_ij| is (1 - 2 / pi) v_ij,
        summed up (1 - 2 / pi) T_ii.
    """
    n, d = tokens.shape[-2:]
    wide = n < d
    gram = gram_matrix(tokens if wide else transpose(tokens))
    vectors, values = leading(gram)
    rest = gram - matmul(vectors * values[..., None, :], transpose(vectors))
    if wide:
        squares = jnp.diagonal(gram, axis1=-2, axis2=-1)
        along = vectors * jnp.sqrt(values)[..., None, :]
        first, second = jnp.diagonal(rest, axis1=-2, axis2=-1), jnp.square(rest).sum(-1)
    else:
        squares = jnp.square(tokens).sum(-1)
        along = matmul(tokens, vectors)
        tokens = made(tokens - matmul(along, transpose(vectors)))  # else what T keeps of the large ones would count
        first, second = jnp.square(tokens).sum(-1), (matmul(tokens, rest) * tokens).sum(-1)
    first = jnp.maximum(first, 0)
    score = jnp.abs(along).sum(-1) + _tail(first, second)
    return score, squares, (1 - 2 / np.pi) * first


def _tail(first: jax.Array, second: jax.Array) -> jax.Array:
    """What is expected of the rest, from the diagonals of T and T^2, [..., N] each."""
    energy = first.sum(-1, keepdims=True)
    mean = second.sum(-1, keepdims=True) / jnp.where(energy > 0, energy, 1)
    mean = jnp.where(mean > 0, mean, 1)
    root = (3 * first - second / mean) / (2 * jnp.sqrt(mean))
    root = jnp.maximum(root, 0)
    return jnp.sqrt(2 / np.pi * root * root.sum(-1, keepdims=True))
