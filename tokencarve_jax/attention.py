"""What the last prompt token looks at: one attention row, and the optional removal of its positional trend."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from tokencarve_jax.budget import describe, static_number
from tokencarve_jax.promotion import usual_promotion


@usual_promotion
def last_query_attention(
    query: ArrayLike,
    keys: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    scale: float | None = None,
    window: int | None = None,
    positions: ArrayLike | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Softmax attention of one query over all keys, averaged over heads.

    This row is all that TokenCarve needs of a layer's attention. It costs O(S) where the full map costs O(S^2), and
    it leaves the layer itself free to use fused attention. The logits are
    `softcap * tanh(scale * query @ key / softcap)`, and the softmax goes over the keys that `mask` and `window` allow.

    Args:
        query: [..., H, d], the query of the last prompt token as the layer's own dot product sees it: after its norm
            and rotary embedding, any float dtype. If the model has scaled it already, pass `scale=1.0`.
        keys: [..., S, H_kv, d], the keys of the same layer, after norm and rotary embedding too. H must be a multiple
            of H_kv (grouped-query attention: query head h reads key head `h // (H // H_kv)`).
        mask: [..., S] bool, True where the query may look. None: everywhere.
        scale: What the dot products are multiplied with; None means `d ** -0.5`.
        window: For a layer with sliding-window attention, an int: only keys less than `window` positions away from
            the query count, its own included. None: all keys.
        positions: [..., S] or, the same for all rows, [S], integers: where the keys stand, which only `window` reads.
            None means 0..S-1. The query stands at the largest position that `mask` allows, so in a row padded on
            the right at its last real token.
        softcap: The bound c of `c * tanh(logits / c)` in models that have one (Gemma 2). None: no bound.

    Returns:
        [..., S] float32, the mean over heads. It sums to 1, or is all zero where the mask allows nothing.

    Raises:
        TypeError: `query` or `keys` is not floating, `mask` is (an additive one: pass `mask == 0`), `positions` are no
            integers, or `window` or `softcap` is no number of Python or NumPy.
        ValueError: The shapes do not fit together, as far as can be told also because keys are given head first;
            `window` or `softcap` is not positive.

    Source: the attention score of TokenCarve (arXiv 2503.10501), which its released code reads from the full map.

    Examples:
        >>> query = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # two heads
        >>> keys = jnp.log(jnp.array([[[9.0, 9.0]], [[1.0, 1.0]], [[9.0, 9.0]]]))  # three tokens, one shared key head
        >>> row = last_query_attention(query, keys, mask=jnp.array([True, True, False]), scale=1.0)
        >>> print((100 * row).round())
        [90. 10.  0.]
        >>> print((100 * last_query_attention(query, keys, scale=1.0, window=2)).round())
        [ 0. 10. 90.]
    """
    query, keys = jnp.asarray(query), jnp.asarray(keys)
    for name, array in (("query", query), ("keys", keys)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating, got {array.dtype}")
    if query.ndim < 2 or keys.ndim < 3 or query.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"expected query [..., H, d] and keys [..., S, H_kv, d] with equal d, got {query.shape} and {keys.shape}"
        )
    if mask is not None:
        mask = jnp.asarray(mask)
        if jnp.issubdtype(mask.dtype, jnp.floating):
            raise TypeError("mask must be Boolean, True where the query may look (of an additive mask, `mask == 0`)")
        mask = mask.astype(bool)
    positions = None if positions is None else jnp.asarray(positions)
    _check_shapes(query, keys, mask, positions)
    *lead, length, kv_heads, width = keys.shape
    grouped = query.reshape(*lead, kv_heads, query.shape[-2] // kv_heads, width)
    logits = jnp.einsum(
        "...gqd,...sgd->...gqs",
        grouped,
        keys,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    logits = logits * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        cap = _positive("softcap", softcap)
        logits = cap * jnp.tanh(logits / cap)
    if window is not None:
        where = jnp.arange(length, dtype=jnp.int32) if positions is None else positions.astype(jnp.int32)
        mask = _within(window, where, jnp.ones((*lead, length), dtype=bool) if mask is None else mask)
    if mask is None:
        return jax.nn.softmax(logits, axis=-1).mean(axis=(-3, -2))
    # The lowest finite number and not -inf: a row without any key then gives equal weights, zeroed below, and no NaN.
    logits = jnp.where(mask[..., None, None, :], logits, jnp.finfo(jnp.float32).min)
    return jnp.where(mask, jax.nn.softmax(logits, axis=-1).mean(axis=(-3, -2)), 0.0)


def _check_shapes(query: jax.Array, keys: jax.Array, mask: jax.Array | None, positions: jax.Array | None) -> None:
    *lead, length, kv_heads, _ = keys.shape
    heads = query.shape[-2]
    if query.shape[:-2] != (*lead,):
        raise ValueError(f"leading dimensions differ: query {query.shape[:-2]}, keys {keys.shape[:-3]}")
    if positions is not None and not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(f"positions must be integers, got {positions.dtype}")
    # Read as [..., H_kv, S, d], do the keys fit where they do not as they are?
    head_first = f"the keys look head first: expected [..., S, H_kv, d], got {keys.shape}; swap them (-3, -2)"
    for name, array, shared in (("mask", mask, False), ("positions", positions, True)):
        if array is None or array.shape == (*lead, length) or (shared and array.shape == (length,)):
            continue
        if array.shape[-1:] == (kv_heads,) and heads % length == 0:
            raise ValueError(f"{name} has {kv_heads} entries for {length} keys: {head_first}")
        raise ValueError(f"{name} must be {(*lead, length)}, one entry per key, got {array.shape}")
    if heads % kv_heads:
        hint = f": {head_first}" if heads % length == 0 else ""
        raise ValueError(f"{heads} query heads cannot be shared among {kv_heads} key heads{hint}")


def _within(window: int, positions: jax.Array, mask: jax.Array) -> jax.Array:
    """`mask` [..., S], narrowed to the keys less than `window` before the last one that it allows."""
    reach = _positive("window", window)
    if not isinstance(reach, int):
        raise TypeError(f"window must be an int, a number of positions, got {describe(window)}")
    last = jnp.where(mask, positions, jnp.iinfo(jnp.int32).min).max(axis=-1, keepdims=True)
    return mask & (positions > last - reach)


def _positive(name: str, value: object) -> float | int:
    number = static_number(value)
    if number is None:
        raise TypeError(f"{name} must be a Python or NumPy number, got {describe(value)}")
    if not number > 0:
        raise ValueError(f"{name} must be positive, or None where the layer has none, got {number}")
    return number


@usual_promotion
def remove_trend(attention: ArrayLike, *, valid: ArrayLike | None = None) -> jax.Array:
    """Divide attention by its own exponential trend along the last axis (the raster index of an image).

    Rotary embeddings make a query prefer near keys, so that the lower rows of an image get more attention than the
    upper ones whatever they show. The trend `exp(c + slope * index)` is fitted by least squares on the logarithm, for
    each row by itself; only its slope changes an order.

    Args:
        attention: [..., N] float, any float dtype, not negative.
        valid: [..., N] bool, the entries to fit on; None means all. Zero, infinite and NaN entries are never fitted on.

    Returns:
        [..., N] float32. A NaN or an infinity stays where it is.

    Raises:
        TypeError, ValueError: What JAX raises for shapes that do not fit together or are no numbers.

    Source: an option of this package, not of the paper; `carve(..., debias=True)` applies it.

    Examples:
        >>> rising = jnp.exp(0.1 * jnp.arange(4.0))
        >>> flat = remove_trend(rising * jnp.array([1.0, 2.0, 2.0, 1.0]))  # the bump stays, the slope goes
        >>> print((flat / flat[0]).round(2))
        [1. 2. 2. 1.]
    """
    attention = jnp.asarray(attention, dtype=jnp.float32)
    fitted = jnp.isfinite(attention) & (attention > 0)
    if valid is not None:
        fitted &= jnp.asarray(valid, dtype=bool)
    weight = fitted.astype(jnp.float32)
    total = jnp.maximum(weight.sum(-1, keepdims=True), 1.0)
    index = jnp.arange(attention.shape[-1], dtype=jnp.float32)
    log = jnp.where(fitted, jnp.log(jnp.where(fitted, attention, 1.0)), 0.0)
    centred = (index - (weight * index).sum(-1, keepdims=True) / total) * weight
    slope = (centred * log).sum(-1, keepdims=True) / jnp.maximum((centred**2).sum(-1, keepdims=True), 1.0)
    middle = (attention.shape[-1] - 1) / 2
    return attention * jnp.exp(-slope * (index - middle))
