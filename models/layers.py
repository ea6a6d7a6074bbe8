"""The few functions that tower and decoder share: activations, rotary embedding, attention.

Axis letters: B batch, S sequence (queries), T keys, H heads, G key-value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp


def quick_gelu(x: jax.Array) -> jax.Array:
    """Sigmoid-weighted x, x * sigmoid(1.702 x): the activation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def _exact_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)  # jax.nn.gelu is the tanh form by default


def _tanh_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


# Names as in transformers' configs.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "gelu": _exact_gelu,
        "gelu_new": _tanh_gelu,
        "gelu_pytorch_tanh": _tanh_gelu,
        "quick_gelu": quick_gelu,
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
        "swish": jax.nn.silu,
    }
)

Rotation = tuple[jax.Array, jax.Array]  # cosine and sine, each [B, S, d/2] float32


def rotation(positions: jax.Array, *, head_dim: int, theta: float, factor: float) -> Rotation:
    """Rotary angles of the given positions (RoFormer, arXiv 2104.09864; `factor` as in linear scaling).

    Args:
      positions: [B, S] int32.
      head_dim: d, even.
      theta: base of the geometric series of wavelengths.
      factor: positions are divided by it.

    Returns:
      Cosine and sine, [B, S, d/2] float32.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim) / factor
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """Rotate pairs (i, i + d/2) of each head, the layout of Llama checkpoints in Hugging Face format.

    Args:
      x: [B, S, H, d].
      by: from `rotation`.

    Returns:
      [B, S, H, d] in x's dtype, computed in float32.
    """
    cos, sin = (part[:, :, None, :] for part in by)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """Scaled dot-product attention, grouped-query heads included, softmax in float32.

    Args:
      query: [B, S, H, d].
      key: [B, T, G, d], H a multiple of G.
      value: [B, T, G, d].
      mask: bool, broadcastable to [B, S, T]; True where a query may look. None: everywhere.

    Returns:
      [B, S, H * d] in the query's dtype. A query that may look nowhere gives finite numbers.
    """
    batch, length, heads, width = query.shape
    if mask is not None:
        mask = jnp.broadcast_to(mask, (batch, length, key.shape[1]))[:, None]
    out = jax.nn.dot_product_attention(query, key, value, mask=mask)
    return out.reshape(batch, length, heads * width)


def causal_mask(lengths: jax.Array, size: int, *, positions: jax.Array, window: int | None) -> jax.Array:
    """Who sees whom in rows that are padded at the end.

    For lengths = [2] and size 3 (rows are queries)::

        1 0 0
        1 1 0
        1 1 0   <- padding; its output is never used

    Args:
      lengths: [B] int32, real tokens of each row.
      size: S.
      positions: [B, S] int32 rotary positions; only read where `window` is set.
      window: a query sees keys less than `window` positions back (Mistral), or None.

    Returns:
      [B, S, S] bool.
    """
    slots = jnp.arange(size)
    mask = (slots[None, :] <= slots[:, None])[None] & (slots[None, None, :] < lengths[:, None, None])
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    return mask
