"""The information contribution of each token: L1 norms of the rows of U S, by routes of different cost and accuracy.

Against float64, 288 tokens of width 512, one random matrix of each kind: the largest relative error of any C_i, and how
many of the 64 kept tokens are the same (attention weight 0.5). "Plain" is the same route without
`dominating_directions`, which both of ours take off first.

| matrix                      | "svd"    | "gram"   | plain SVD | plain Gram |
|-----------------------------|----------|----------|-----------|------------|
| singular values 1/j^0.3     | 9e-6, 64 | 2e-5, 64 |  9e-6, 64 |   2e-5, 64 |
| singular values 1/j^0.5     | 8e-6, 64 | 1e-2, 64 |  8e-6, 64 |   1e-2, 64 |
| singular values 1/j         | 2e-6, 64 | 2e-2, 64 |  2e-6, 64 |   2e-2, 64 |
| singular values 1/j^2       | 1e-4, 64 | 1e-2, 64 |  2e-3, 64 |   3e-2, 63 |
| half are near-duplicates    | 2e-5, 64 | 1e-3, 64 |  2e-5, 64 |   1e-3, 64 |
| one token 1000 times larger | 5e-6, 64 | 1e-4, 64 |  7e-3, 64 |   5e-1, 60 |
| three tokens 1000 times     | 5e-3, 64 | 7e-1, 62 |  2e-1, 63 |   1e+0, 54 |
| two massive channels        | 4e-6, 64 | 5e-6, 64 |  9e-4, 63 |   1e-1, 62 |
| a large common mean         | 3e-5, 64 | 6e-5, 64 |  5e-5, 64 |   1e-2, 58 |

`python -m experiments.information_routes` measures this for any size and for a model's own hidden states, with times.
"gram" is the default: it is the fast one, and of these choices it lost two tokens in one. "norm" is no
approximation but a control (|h_i| <= C_i <= sqrt(rank) |h_i|): it agreed on 81 to 120 of 128 tokens at 576 x 1024.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from tokencarve_jax._spectrum import dominating_directions, gram, matmul, transpose


def information_contribution(tokens: ArrayLike, *, method: str = "gram") -> jax.Array:
    """How much each token contributes to the information in the whole: the L1 norms of the rows of U S.

    With the singular value decomposition H = U S V^T of the tokens, C_i = sum_j |U_ij| S_j. It is well defined
    where the singular values are separated: inside a degenerate subspace any rotation is a singular basis.

    Args:
        tokens: [..., N, D], any float dtype; computed in float32 (float64 stays float64), highest matmul precision.
        method: "svd" (exact), "gram" (fast), "jacobi" ("gram" with Jacobi's eigen-solver on GPU and TPU) or "norm" (the
            L2 norm of each token instead, a control). The table at the head of this module compares them.

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
    scaled, scale = to_unit_scale(tokens)
    return (ROUTES[method](scaled) * scale[..., 0]).astype(jnp.float32)


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
    counts = jnp.isfinite(tokens).all(-1, keepdims=True)
    if usable is not None:
        counts &= usable[..., None]
    # A pass of its own says which rows are finite: the maximum of a row with a NaN is a number on some CPUs.
    peak = lax.stop_gradient(jnp.abs(tokens)).max(axis=-1, keepdims=True, initial=0)
    largest = jnp.where(counts, peak, 0).max(axis=-2, keepdims=True, initial=0)
    exponent = jnp.clip(jnp.frexp(largest)[1], -125, 125)
    one = jnp.ones_like(largest)
    return jnp.where(counts, tokens * jnp.ldexp(one, -exponent), 0), jnp.ldexp(one, exponent)


def _by(rotate: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The route that takes the dominating directions off, and leaves the rest to `rotate`."""

    def route(tokens: jax.Array) -> jax.Array:
        directions, along = dominating_directions(tokens)
        rest = tokens - matmul(along, transpose(directions))
        score = jnp.abs(along).sum(-1) + jnp.abs(rotate(rest)).sum(-1)
        # |h_i| <= C_i <= sqrt(rank) |h_i| holds for every matrix: rounding may not lift a zero row among the others.
        norm = jnp.linalg.norm(tokens, axis=-1)
        return jnp.clip(score, norm, norm * min(tokens.shape[-2:]) ** 0.5)

    return route


def _svd(tokens: jax.Array) -> jax.Array:
    """U S up to signs: QR down to the smaller side, then the SVD of a small square matrix.

    U S is the same for H and for H Q with any orthogonal Q, hence the triangle alone is decomposed. It is
    recovered as a product with V and not as U times S: that way the error in row i is relative to row i's own norm.
    """
    n, d = tokens.shape[-2:]
    if n < d:
        tokens = square = transpose(jnp.linalg.qr(transpose(tokens), mode="r"))
    else:
        square = jnp.linalg.qr(tokens, mode="r")
    _, _, vh = jnp.linalg.svd(square, full_matrices=False)
    return matmul(tokens, transpose(vh))


def _gram(tokens: jax.Array, *, jacobi: bool = False) -> jax.Array:
    """U S up to signs, from the eigenpairs of the smaller Gram matrix: U and S^2 of H H^T, or V of H^T H."""
    n, d = tokens.shape[-2:]
    if n < d:
        vectors, values = _eigh(gram(tokens), jacobi=jacobi)
        return vectors * jnp.sqrt(jnp.maximum(values, 0))[..., None, :]
    vectors, _ = _eigh(gram(transpose(tokens)), jacobi=jacobi)
    return matmul(tokens, vectors)  # H V, whose rows keep their norms whatever the eigenvalues lost


def _eigh(matrix: jax.Array, *, jacobi: bool) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors and eigenvalues by the platform's default, or by Jacobi's method where the platform has it."""
    default = functools.partial(lax.linalg.eigh, symmetrize_input=False)
    if not jacobi:
        return default(matrix)
    other = functools.partial(default, implementation=lax.linalg.EighImplementation.JACOBI)
    return lax.platform_dependent(matrix, cpu=default, default=other)


def _norm(tokens: jax.Array) -> jax.Array:
    """The L2 norm of the rows of U S, which is that of the rows of H: no decomposition at all."""
    return jnp.linalg.norm(tokens, axis=-1)


ROUTES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "svd": _by(_svd),
    "gram": _by(_gram),
    "jacobi": _by(functools.partial(_gram, jacobi=True)),
    "norm": _norm,
}
