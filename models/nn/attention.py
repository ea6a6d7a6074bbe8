"""Scaled dot-product attention over a whole sequence and over a cache, and its masks.

Axis letters: B batch, S sequence (queries), T keys, H heads, G key-value heads, d head width, A axes of a position.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from models.nn.rotary import Rotation, agreement

QUERY_BLOCK = 128  # queries at a time in `attend`


def _attend_block(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """Softmax attention, head by head: [..., R, d] to [..., T, d], mask [..., R, T], bias [..., 1 or R, T].

    The division comes last, over d numbers and not over T.
    """
    logits = jnp.einsum("...rd,...td->...rt", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("...rt,...td->...rd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (out / total).astype(query.dtype)


def _by_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array | None, bias: jax.Array | None, causal: bool
) -> jax.Array:
    """`attend`, a block of queries at a time: scores stay near the processor, and no key after the block is read."""
    batch, length, heads, width = query.shape
    _, keys, groups, _ = key.shape
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    query = jnp.swapaxes(query.reshape(batch, length, groups, -1, width), 1, 2)  # [B, G, S, R, d]
    shared = heads // groups  # queries that read the same key head: rows of one matrix
    if mask is None and causal:
        mask = jnp.tri(length, keys, dtype=bool)[None]
    elif mask is not None:
        mask = jnp.broadcast_to(mask, (batch, length, keys))

    def shares(array: jax.Array, rows: slice, seen: slice) -> jax.Array:
        return jnp.repeat(array[:, None, rows, seen], shared, axis=2)

    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, length))
        seen = slice(rows.stop if causal else keys)
        part = None if mask is None else shares(mask, rows, seen)
        lift = None if bias is None else bias[:, None, None, seen] if bias.ndim == 2 else shares(bias, rows, seen)
        block = query[:, :, rows].reshape(batch, groups, -1, width)
        blocks.append(_attend_block(block, key[:, :, seen], value[:, :, seen], part, lift))
    out = jnp.concatenate(blocks, axis=2).reshape(batch, groups, length, shared * width)
    return jnp.swapaxes(out, 1, 2).reshape(batch, length, heads * width)


def fits_cudnn(dtype: jax.typing.DTypeLike, head_dim: int) -> bool:
    """Whether cuDNN's fused attention takes heads of this dtype and width, on NVIDIA's Ampere and later."""
    return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    causal: bool = False,
    kernel: str = "blocks",
) -> jax.Array:
    """Scaled dot-product attention, grouped-query heads included, softmax in float32.

    Args:
      query: [B, S, H, d].
      key: [B, T, G, d], H a multiple of G.
      value: [B, T, G, d].
      mask: bool, broadcastable to [B, S, T]; True where a query may look. None: everywhere, or what `causal` allows.
      bias: [B, T] or [B, S, T] float32, added to the logits.
      causal: query s sees no key after s. With a mask it is a promise about that mask.
      kernel: "blocks" runs on any device. "cudnn" is one fused kernel on NVIDIA GPUs, used where there is neither mask
        nor bias and cuDNN takes such heads; blocks elsewhere.

    Returns:
      [B, S, H * d] in the query's dtype; finite numbers for a query that sees no key.
    """
    if kernel == "cudnn" and mask is None and bias is None and fits_cudnn(query.dtype, query.shape[-1]):
        out = jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")
        return out.reshape(*query.shape[:2], -1)
    return _by_blocks(query, key, value, mask=mask, bias=bias, causal=causal)


def log_sizes(sizes: jax.Array | None) -> jax.Array | None:
    """The bias of keys that stand for several tokens (ToMe, arXiv 2210.09461): as if each were there `sizes` times."""
    return None if sizes is None else jnp.log(jnp.where(sizes > 0, sizes, 1))


def log_distances(query: Rotation, key: Rotation) -> jax.Array:
    """The bias [B, S, T] of keys by their distance: log(2 - agreement), 0 at the query and near log 2 far from it.

    By RESTORE (arXiv 2606.01711): what rotary embedding takes from far tokens, merged ones get back.
    """
    return jnp.log(2 - agreement(query, key))


def by_head(x: jax.Array, *, decode_capacity: int, merge: bool) -> jax.Array:
    """Keys or values [B, S, G, d] in the order that `attend_cached` reads, with `decode_capacity` slots added.

    Returns:
      [B * G, S', d] if batch and heads `merge` into one axis, else [B, G, S', d].
    """
    x = jnp.pad(jnp.swapaxes(x, 1, 2), [(0, 0), (0, 0), (0, decode_capacity), (0, 0)])
    return x.reshape(-1, *x.shape[2:]) if merge else x


def attend_cached(
    query: jax.Array, keys: jax.Array, values: jax.Array, *, mask: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Attention of one new token per row to its cache, softmax in float32.

    The cache is stored head by head: from [B, T, G, d] a batched matrix product would first copy all keys and values
    into this order, in every layer of every step, and from [B, G, T, d] XLA would copy them once more.

    Args:
      query: [B, 1, H, d].
      keys: from `by_head`, H a multiple of G.
      values: from `by_head`.
      mask: [B, T] bool, True where the token may look.
      bias: [B, T] float32, added to the logits of each key.

    Returns:
      [B, 1, H * d] in the query's dtype.
    """
    batch, _, heads, width = query.shape
    *leading, slots, _ = keys.shape
    groups = keys.size // (batch * slots * width)

    def per_head(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[:, None], (batch, groups, slots)).reshape(*leading, 1, slots)

    lift = None if bias is None else per_head(bias)
    out = _attend_block(query.reshape(*leading, heads // groups, width), keys, values, per_head(mask), lift)
    return out.reshape(batch, 1, heads * width)


def window_mask(positions: jax.Array, lengths: jax.Array, window: int | None) -> jax.Array | None:
    """The mask of rows that are padded at the end; None without a window, where causality alone hides the padding.

    For lengths = [3], window 2 and positions 0, 1, 5, 6 (rows are queries)::

        1 0 0 0
        1 1 0 0
        0 0 1 0
        0 0 0 0   <- padding; its output is never used

    Args:
      positions: [B, S, A] int32 rotary positions; the first axis counts.
      lengths: [B] int32, real tokens of each row.
      window: a query sees keys less than `window` positions back (Mistral), or None.

    Returns:
      [B, S, S] bool, or None.
    """
    if window is None:
        return None
    slots, place = jnp.arange(positions.shape[1]), positions[..., 0]
    mask = (slots[None, :] <= slots[:, None])[None] & (slots[None, None, :] < lengths[:, None, None])
    return mask & (place[:, :, None] - place[:, None, :] < window)


def seen_by_one(valid: jax.Array, position: jax.Array, positions: jax.Array, window: int | None) -> jax.Array:
    """[B, T] bool, which of the `valid` [B, T] keys at `positions` [B, T, A] the last token at `position` [B] sees."""
    return valid if window is None else valid & (position[:, None] - positions[..., 0] < window)
