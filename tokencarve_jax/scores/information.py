"""The information contribution of each token: L1 norms of the rows of U S, by routes of different cost and accuracy.

"subspace" is the default: made of matrix products, it needs no eigen-solver of the tokens' number, which on
accelerators may eat what carving gains. Of the best tokens that float64 finds in what attention adds in trained models
it finds 99 %, in their hidden states 97 to 99 %, and fewer where singular values hardly decay. "gram" finds nearly all,
and takes a quarter longer on a CPU. Take "svd" where the order has to be that of float64. "norm" is no approximation
but a control (|h_i| <= C_i <= sqrt(rank) |h_i|). docs/performance.md has the errors and times of all routes.

On a CPU these calls go to LAPACK, which they leave with one thread (`_blas` says why, and whose calls that touches).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from tokencarve_jax._blas import one_thread
from tokencarve_jax.promotion import usual_promotion
from tokencarve_jax.scores.decompositions import eigh, eigh_by_jacobi, right_singular_vectors, triangle
from tokencarve_jax.scores.spectrum import (
    dominating_directions,
    gram_matrix,
    made,
    matmul,
    transpose,
    without,
)
from tokencarve_jax.scores.subspace import SOUGHT, by_subspace, orthonormal

DEFAULT = "subspace"
"""The route that is taken where none is asked for, on every machine: a choice by machine would change its answers."""


Eigh = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@usual_promotion
def information_contribution(tokens: ArrayLike, *, method: str = DEFAULT) -> jax.Array:
    """How much each token contributes to the information in the whole: the L1 norms of the rows of U S.

    With the singular value decomposition H = U S V^T of the tokens, `C_i = sum_j |U_ij| S_j`. It is well defined
    where the singular values are separated: inside a degenerate subspace any rotation is a singular basis.

    Args:
        tokens: [..., N, D], any float dtype; computed in float32 (float64 stays float64), highest matmul precision.
        method: "svd" (exact), "gram" (by eigenvectors of the Gram matrix), "jacobi" ("gram" with Jacobi's eigen-solver
            on GPU and TPU), "subspace" (by products of matrices; what is no leading direction is estimated; "gram"
            where N or D is at most 240) or "norm" (the L2 norm of each token instead, a control).
            docs/performance.md compares them.

    Returns:
        [..., N] float32. A token with a NaN or an infinity gets 0 and has no influence on the others.

    Raises:
        TypeError: `tokens` is not floating.
        ValueError: `tokens` has fewer than two dimensions, or `method` is unknown.

    Source: the information contribution score of TokenCarve (arXiv 2503.10501, section 3).

    Examples:
        >>> tokens = jnp.array([[3.0, 4.0], [0.0, 0.0], [0.3, 0.4]])
        >>> print(information_contribution(tokens, method="svd").round(3))
        [5.  0.  0.5]
    """
    tokens = _checked(tokens)
    check_method(method)
    scaled, scale = to_unit_scale(tokens)
    return (ROUTES[method](scaled) * scale[..., 0]).astype(jnp.float32)


def _checked(tokens: ArrayLike) -> jax.Array:
    """The tokens in the dtype that scores are computed in."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.floating):
        raise TypeError(f"tokens must be floating, got {tokens.dtype}")
    if tokens.ndim < 2:
        raise ValueError(f"tokens must be [..., N, D], got shape {tokens.shape}")
    return tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))


def check_method(method: str) -> None:
    """Raise a ValueError that lists the routes, unless `method` is one of them."""
    if method not in ROUTES:
        raise ValueError(f"information must be one of {', '.join(map(repr, ROUTES))}, got {method!r}")


def to_unit_scale(tokens: jax.Array, usable: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Divide [..., N, D] by a power of two that brings the largest entry near 1: no square overflows.

    Args:
        tokens: Float. A row with a NaN or an infinity becomes zero and has no influence on the scale.
        usable: [..., N] bool, False for other rows to treat like that.

    Returns:
        The scaled tokens and the power of two [..., 1, 1]: their product is the finite tokens again, bit for bit.
    """
    size = lax.stop_gradient(jnp.abs(tokens))
    # Both in one pass. The peak alone does not tell: the maximum of a row with a NaN is a number on some CPUs.
    peak, finite = lax.reduce(
        (size, jnp.isfinite(size)),
        (jnp.zeros((), size.dtype), jnp.array(True)),
        lambda left, right: (jnp.maximum(left[0], right[0]), left[1] & right[1]),
        (size.ndim - 1,),
    )
    peak, counts = peak[..., None], (finite if usable is None else finite & usable)[..., None]
    largest = jnp.where(counts, peak, 0).max(axis=-2, keepdims=True, initial=0)
    exponent = jnp.clip(jnp.frexp(largest)[1], -125, 125)
    one = jnp.ones_like(largest)
    return jnp.where(counts, tokens * jnp.ldexp(one, -exponent), 0), jnp.ldexp(one, exponent)


def _by(
    rest: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    **search: Any,
) -> Callable[[jax.Array], jax.Array]:
    """The route that takes the dominating directions off, and leaves the rest to `rest`.

    That gives the rest's score, and the squared norms of its rows, which it has at hand.
    """

    def route(tokens: jax.Array) -> jax.Array:
        one_thread()
        tokens = made(tokens)  # once, and not for each product that reads it
        directions, along = dominating_directions(tokens, **search)
        score, squares = rest(without(tokens, directions, along))
        score = jnp.abs(along).sum(-1) + score
        # |h_i| <= C_i <= sqrt(rank) |h_i| holds for every matrix: rounding may not lift a zero row among the others.
        norm = jnp.sqrt(squares + jnp.square(along).sum(-1))
        return jnp.clip(score, norm, norm * min(tokens.shape[-2:]) ** 0.5)

    return route


def _svd(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By a QR decomposition down to the smaller side, then the SVD of a small square matrix.

    U S is the same for H and for H Q with any orthogonal Q, hence the triangle alone is decomposed. It is
    recovered as a product with V and not as U times S: that way the error in row i is relative to row i's own norm.
    """
    n, d = tokens.shape[-2:]
    if n < d:
        tokens = square = transpose(triangle(transpose(tokens)))
    else:
        square = triangle(tokens)
    return _along(tokens, right_singular_vectors(square))


def _gram(tokens: jax.Array, *, decompose: Eigh = eigh) -> tuple[jax.Array, jax.Array]:
    """From the eigenpairs of the smaller Gram matrix: U and S^2 of H H^T, or V of H^T H."""
    n, d = tokens.shape[-2:]
    if n >= d:
        vectors, _ = decompose(gram_matrix(transpose(tokens)))
        return _along(tokens, vectors)
    gram = gram_matrix(tokens)
    vectors, values = decompose(gram)
    rotated = vectors * jnp.sqrt(jnp.maximum(values, 0))[..., None, :]
    return jnp.abs(rotated).sum(-1), jnp.diagonal(gram, axis1=-2, axis2=-1)


def _along(tokens: jax.Array, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The L1 norms of the rows of H V, and their squared norms: those of H, whatever the eigenvalues lost."""
    rotated = matmul(tokens, vectors)
    return jnp.abs(rotated).sum(-1), jnp.square(rotated).sum(-1)


def _norm(tokens: jax.Array) -> jax.Array:
    """The L2 norm of the rows of U S, which is that of the rows of H: no decomposition at all."""
    return jnp.linalg.norm(tokens, axis=-1)


SEARCH: dict[str, Any] = {"orthonormal": orthonormal, "products": 3}
"""How "subspace" looks for dominating directions: by Cholesky's decomposition instead of Householder's, and with one
product less than the others, whose last digits a tail that is only estimated does not need."""
_leading_alone = _by(by_subspace, **SEARCH)


def _subspace(tokens: jax.Array) -> jax.Array:
    """By the leading directions; by all of them, as "gram", where there are no more than are sought."""
    return (_leading_alone if min(tokens.shape[-2:]) > SOUGHT else ROUTES["gram"])(tokens)


ROUTES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "svd": _by(_svd),
    "gram": _by(_gram),
    "jacobi": _by(functools.partial(_gram, decompose=eigh_by_jacobi)),
    "subspace": _subspace,
    "norm": _norm,
}
