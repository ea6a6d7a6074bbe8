"""How alike tokens are, without overflow, at full precision."""

import jax
import jax.numpy as jnp
from jax import lax


def unit(rows: jax.Array) -> jax.Array:
    """Rows [..., D] at length 1; a zero row stays zero. No gradient goes through."""
    # Largest entry first, then the norm: no square can overflow or vanish.
    rows = lax.stop_gradient(rows)
    rows = rows / _positive(jnp.abs(rows).max(-1, keepdims=True))
    return rows / _positive(jnp.linalg.norm(rows, axis=-1, keepdims=True))


def cosine(left: jax.Array, right: jax.Array) -> jax.Array:
    """Cosine similarity of rows [..., b, D] with rows [..., a, D]: [..., b, a]. A zero row is orthogonal to all."""
    return jnp.matmul(unit(left), jnp.swapaxes(unit(right), -1, -2), precision=lax.Precision.HIGHEST)


def _positive(array: jax.Array) -> jax.Array:
    return jnp.where(array > 0, array, 1)
