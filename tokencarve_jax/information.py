"""The information contribution of each token: row norms of U S, by several routes of different cost and accuracy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def information_contribution(tokens: ArrayLike, *, method: str = "gram") -> jax.Array:
    """How much each token contributes to the information in the whole: the L1 norms of the rows of U S.

    With the singular value decomposition H = U S V^T of the tokens, C_i = sum_j |U_ij| S_j. It is well defined
    where the singular values are separated: inside a degenerate subspace any rotation is a singular basis.

    Args:
        tokens: [..., N, D], any float dtype; computed in float32 (float64 stays float64), highest matmul precision.
        method: "svd" (exact), "gram" (fast) or "norm" (the L2 norm instead, a control); see the table in
            `tokencarve_jax.information`.

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
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.floating):
        raise TypeError(f"tokens must be floating, got {tokens.dtype}")
    if tokens.ndim < 2:
        raise ValueError(f"tokens must be [..., N, D], got shape {tokens.shape}")
    check_method(method)
    tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))
    finite = jnp.isfinite(tokens).all(-1, keepdims=True)
    scaled, scale = to_unit_scale(jnp.where(finite, tokens, 0))
    return (ROUTES[method](scaled) * scale[..., 0]).astype(jnp.float32)


def check_method(method: str) -> None:
    """Raise a ValueError that lists the routes, unless `method` is one of them."""
    if method not in ROUTES:
        raise ValueError(f"information must be one of {', '.join(map(repr, ROUTES))}, got {method!r}")


def to_unit_scale(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Divide [..., N, D] by a power of two that brings the largest entry near 1: no square overflows.

    Returns:
        The scaled tokens and the power of two [..., 1, 1]: their product is `tokens` again, bit for bit.
    """
    largest = lax.stop_gradient(jnp.abs(tokens).max(axis=(-2, -1), keepdims=True, initial=0))
    exponent = jnp.clip(jnp.frexp(largest)[1], -125, 125)
    one = jnp.ones_like(largest)
    return tokens * jnp.ldexp(one, -exponent), jnp.ldexp(one, exponent)


def _svd(tokens: jax.Array) -> jax.Array:
    """QR down to the smaller side, then the SVD of a small square matrix.

    C is the same for H and for H Q with any orthogonal Q, hence the triangle alone is decomposed. U S is
    recovered as a product with V and not as U times S: that way the error in row i is relative to row i's own norm.
    """
    n, d = tokens.shape[-2:]
    if n < d:
        tokens = _transpose(jnp.linalg.qr(_transpose(tokens), mode="r"))
        square = tokens
    else:
        square = jnp.linalg.qr(tokens, mode="r")
    _, _, vh = jnp.linalg.svd(square, full_matrices=False)
    return _l1(_matmul(tokens, _transpose(vh)))


def _gram(tokens: jax.Array) -> jax.Array:
    """Eigenpairs of the smaller Gram matrix: U and S^2 of H H^T, or V of H^T H and then U S = H V."""
    n, d = tokens.shape[-2:]
    if n < d:
        values, vectors = jnp.linalg.eigh(_matmul(tokens, _transpose(tokens)))
        return _l1(vectors * jnp.sqrt(jnp.maximum(values, 0))[..., None, :])
    _, vectors = jnp.linalg.eigh(_matmul(_transpose(tokens), tokens))
    return _l1(_matmul(tokens, vectors))


def _norm(tokens: jax.Array) -> jax.Array:
    """The L2 norm of the rows of U S, which is that of the rows of H: no decomposition at all."""
    return jnp.linalg.norm(tokens, axis=-1)


ROUTES: dict[str, Callable[[jax.Array], jax.Array]] = {"svd": _svd, "gram": _gram, "norm": _norm}


def _l1(rows: jax.Array) -> jax.Array:
    return jnp.abs(rows).sum(-1)


def _transpose(matrix: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrix, -1, -2)


def _matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    # The default on accelerators is TF32 or bfloat16, too coarse for a score that is only used for its order.
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
