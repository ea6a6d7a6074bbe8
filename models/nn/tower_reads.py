"""What methods read in a block of CLIP's tower, and in which; queries and keys in, without Flax.

Axis letters: B images, S tokens, the class token first, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from tokencarve_jax import last_query_attention

IN_BLOCKS = ("class_attention", "global_attention", "middle_attention", "tower_keys")


def block_of(what: tuple[str, int], depth: int) -> tuple[str, int]:
    """The name in `READS` and the block that evidence of a name and tower layer is read from."""
    name, layer = what
    if name == "middle_attention":
        return "global_attention", max(0, 3 * depth // 8 - 1)  # HiPrune's: the 9th of 24, index 8
    return name, max(0, depth + layer)


def _global_attention(query: jax.Array, key: jax.Array) -> jax.Array:
    """Mean attention [B, S] of all queries [B, S, H, d] to keys [B, S, H, d]; the map of one head at a time."""

    def add(total: jax.Array, head: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        asks, answers = (part.astype(jnp.float32) for part in head)
        logits = jnp.einsum("bqd,bkd->bqk", asks, answers, precision=jax.lax.Precision.HIGHEST)
        return total + jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1).mean(1), None

    heads = jnp.moveaxis(query, 2, 0), jnp.moveaxis(key, 2, 0)
    total, _ = jax.lax.scan(add, jnp.zeros(key.shape[:2], jnp.float32), heads)
    return total / query.shape[2]


# From queries and keys [B, S, H, d] of a block.
READS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "class_attention": lambda query, key: last_query_attention(query[:, 0], key),
    "global_attention": _global_attention,
    "tower_keys": lambda _, key: key.mean(2),
}
