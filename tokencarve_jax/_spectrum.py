"""The few directions that dwarf all others, found by subspace iteration, so that float32 is left for the rest."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def dominating_directions(
    tokens: jax.Array, *, width: int = 8, steps: int = 3, tolerance: float = 1e-5
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
        steps: How many times the sought subspace is multiplied with H^T H.
        tolerance: A direction counts as found when `|H^T H v - s^2 v| < tolerance * s^2`. A looser one would put its
            own error into scores that are better without.

    Returns:
        The directions V [..., D, width] and the tokens along them H V [..., N, width]; columns not found are zero.
    """
    n, d = tokens.shape[-2:]
    width = min(width, n, d)
    start = np.random.default_rng(0).standard_normal((n, width))  # any fixed start that is in no special position
    along = jnp.broadcast_to(jnp.asarray(start, tokens.dtype), (*tokens.shape[:-2], n, width))
    for _ in range(steps):
        basis, _ = jnp.linalg.qr(transpose(matmul(transpose(along), tokens)))
        along = matmul(tokens, basis)
    rotation, _ = lax.linalg.eigh(matmul(transpose(along), along))
    basis, along = matmul(basis, rotation), matmul(along, rotation)
    square = (along**2).sum(-2)
    residual = transpose(matmul(transpose(along), tokens)) - basis * square[..., None, :]
    found = (jnp.linalg.norm(residual, axis=-2) < tolerance * square)[..., None, :]
    return basis * found, along * found


def transpose(matrix: jax.Array) -> jax.Array:
    """Swap the last two axes."""
    return jnp.swapaxes(matrix, -1, -2)


def matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix product at full precision: the default on accelerators is TF32 or bfloat16, too coarse for a score."""
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def gram(rows: jax.Array) -> jax.Array:
    """Inner products of rows, [..., N, D] -> [..., N, N], by one contraction that needs no transposed copy of them."""
    axes, batch = ((rows.ndim - 1,),) * 2, (tuple(range(rows.ndim - 2)),) * 2
    return lax.dot_general(rows, rows, (axes, batch), precision=lax.Precision.HIGHEST)
