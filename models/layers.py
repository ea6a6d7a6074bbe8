"""The few functions that tower and decoder share: activations, linear layers, rotary embedding, attention.

Axis letters: B batch, S sequence (queries), T keys, H heads, G key-value heads, d head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx


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


class Linear(nnx.Module):
    """y = W x + b, with W as checkpoints hold it: [out, in].

    In decoding every row of W is read once, for one vector. Stored by rows, the rows that a core works on are one
    stretch of memory; stored as [in, out], they are scattered over all of it.

    Args:
      in_features: width of x.
      out_features: width of y.
      use_bias: whether there is a b.
      dtype: of W and b.
      rngs: for the random initialisation.
    """

    def __init__(self, in_features: int, out_features: int, *, use_bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.weight = nnx.Param(_by_fan_in(rngs.params(), (out_features, in_features), dtype))
        self.bias = nnx.Param(jnp.zeros(out_features, dtype)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        y = jnp.einsum("...i,oi->...o", x, self.weight[...])
        return y if self.bias is None else y + self.bias[...]


QUERY_BLOCK = 128  # queries at a time in `attend`

_by_fan_in = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)

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


def _attend_block(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax attention, head by head: [..., R, d] to [..., T, d], mask [..., R, T].

    The division comes last, over d numbers and not over T.
    """
    logits = jnp.einsum("...rd,...td->...rt", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("...rt,...td->...rd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (out / total).astype(query.dtype)


def _by_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, causal: bool
) -> jax.Array:
    """`attend`, a block of queries at a time: its scores stay near the processor, and no key behind it is read."""
    batch, length, heads, width = query.shape
    _, keys, groups, _ = key.shape
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    query = jnp.swapaxes(query.reshape(batch, length, groups, -1, width), 1, 2)  # [B, G, S, R, d]
    shared = heads // groups  # queries that read the same key head: rows of one matrix
    if mask is None and causal:
        mask = jnp.tri(length, keys, dtype=bool)[None]
    elif mask is not None:
        mask = jnp.broadcast_to(mask, (batch, length, keys))
    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, length))
        seen = slice(rows.stop if causal else keys)
        part = None if mask is None else jnp.repeat(mask[:, None, rows, seen], shared, axis=2)
        block = query[:, :, rows].reshape(batch, groups, -1, width)
        blocks.append(_attend_block(block, key[:, :, seen], value[:, :, seen], part))
    out = jnp.concatenate(blocks, axis=2).reshape(batch, groups, length, shared * width)
    return jnp.swapaxes(out, 1, 2).reshape(batch, length, heads * width)


def _fused(query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool) -> jax.Array:
    """`attend` as one kernel of cuDNN's."""
    out = jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")
    return out.reshape(*query.shape[:2], -1)


def _fuses(*heads: jax.Array) -> bool:
    """Whether this machine has a kernel for queries, keys and values of these types and shapes."""
    if not all(x.dtype in (jnp.bfloat16, jnp.float16) for x in heads):
        return False
    generation, *_ = str(getattr(jax.devices()[0], "compute_capability", "")).split(".")  # "9.0", but AMD's "gfx942"
    if not generation.isdigit() or int(generation) < 8:  # NVIDIA's Ampere
        return False
    try:
        jax.eval_shape(functools.partial(_fused, causal=False), *heads)
    except (RuntimeError, ValueError, NotImplementedError):  # JAX says so: no cuDNN, or too old for this width
        return False
    return True


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array | None = None, causal: bool = False
) -> jax.Array:
    """Scaled dot-product attention, grouped-query heads included, softmax in float32.

    Without a mask of its own it is one fused kernel where the GPU has one for the dtype; otherwise queries go block
    by block.

    Args:
      query: [B, S, H, d].
      key: [B, T, G, d], H a multiple of G.
      value: [B, T, G, d].
      mask: bool, broadcastable to [B, S, T]; True where a query may look. None: everywhere, or what `causal` allows.
      causal: query s looks at no key behind s. With a mask it is a promise about that mask.

    Returns:
      [B, S, H * d] in the query's dtype. A query that may look nowhere gives finite numbers.
    """
    blocks = functools.partial(_by_blocks, mask=mask, causal=causal)
    if mask is None and _fuses(query, key, value):
        fused = functools.partial(_fused, causal=causal)
        return jax.lax.platform_dependent(query, key, value, cuda=fused, default=blocks)
    return blocks(query, key, value)


def by_head(x: jax.Array, *, room: int, merge: bool) -> jax.Array:
    """Keys or values in the order that `attend_cached` reads.

    Args:
      x: [B, S, G, d].
      room: slots to add.
      merge: batch and heads into one axis.

    Returns:
      [B * G, S + room, d], or [B, G, S + room, d] where they are not merged.
    """
    x = jnp.pad(jnp.swapaxes(x, 1, 2), [(0, 0), (0, 0), (0, room), (0, 0)])
    return x.reshape(-1, *x.shape[2:]) if merge else x


def attend_cached(query: jax.Array, keys: jax.Array, values: jax.Array, *, mask: jax.Array) -> jax.Array:
    """Attention of one new token per row to its cache, softmax in float32.

    The cache stands head by head, so that every product reads keys and values where they are. From [B, T, G, d] a
    batched matrix product would first copy all of them into this order, in every layer of every step; and from
    [B, G, T, d], which XLA reshapes to one batch axis, it copies them once more.

    Args:
      query: [B, 1, H, d].
      keys: from `by_head`, H a multiple of G.
      values: from `by_head`.
      mask: [B, T] bool, True where the token may look.

    Returns:
      [B, 1, H * d] in the query's dtype.
    """
    batch, _, heads, width = query.shape
    *leading, slots, _ = keys.shape
    groups = keys.size // (batch * slots * width)
    mask = jnp.broadcast_to(mask[:, None], (batch, groups, slots)).reshape(*leading, 1, slots)
    out = _attend_block(query.reshape(*leading, heads // groups, width), keys, values, mask)
    return out.reshape(batch, 1, heads * width)


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
