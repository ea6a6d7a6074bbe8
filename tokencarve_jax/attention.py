"""What the last prompt token looks at: one attention row, and the optional removal of its positional trend."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def last_query_attention(
    query: ArrayLike, keys: ArrayLike, *, mask: ArrayLike | None = None, scale: float | None = None
) -> jax.Array:
    """Softmax attention of one query over all keys, averaged over heads.

    This row is all that TokenCarve needs of a layer's attention. It costs O(S) where the full map costs O(S^2), and
    it leaves the layer itself free to use fused attention.

    Args:
        query: [..., H, d], the query of the last prompt token after rotary embedding, any float dtype.
        keys: [..., S, H_kv, d], the keys of the same layer. H must be a multiple of H_kv (grouped-query attention:
            query head h reads key head `h // (H // H_kv)`).
        mask: [..., S] bool, True where the query may look. None: everywhere.
        scale: What the dot products are multiplied with; None means `d ** -0.5`.

    Returns:
        [..., S] float32, the mean over heads. It sums to 1, or is all zero where the mask allows nothing.

    Raises:
        TypeError: `query` or `keys` is not floating.
        ValueError: The shapes do not fit together.

    Source: the attention score of TokenCarve (arXiv 2503.10501), which its released code reads from the full map.

    Examples:
        >>> query = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # two heads
        >>> keys = jnp.log(jnp.array([[[9.0, 9.0]], [[1.0, 1.0]], [[9.0, 9.0]]]))  # three tokens, one shared key head
        >>> row = last_query_attention(query, keys, mask=jnp.array([True, True, False]), scale=1.0)
        >>> print((100 * row).round())
        [90. 10.  0.]
    """
    query, keys = jnp.asarray(query), jnp.asarray(keys)
    for name, array in (("query", query), ("keys", keys)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating, got {array.dtype}")
    if query.ndim < 2 or keys.ndim < 3 or query.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"expected query [..., H, d] and keys [..., S, H_kv, d] with equal d, got {query.shape} and {keys.shape}"
        )
    *_, heads, width = query.shape
    *_, length, kv_heads, _ = keys.shape
    if query.shape[:-2] != keys.shape[:-3]:
        raise ValueError(f"leading dimensions differ: query {query.shape[:-2]}, keys {keys.shape[:-3]}")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot be shared among {kv_heads} key heads")
    grouped = query.reshape(*query.shape[:-2], kv_heads, heads // kv_heads, width)
    logits = jnp.einsum(
        "...gqd,...sgd->...gqs",
        grouped,
        keys,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    logits = logits * (width**-0.5 if scale is None else scale)
    if mask is None:
        return jax.nn.softmax(logits, axis=-1).mean(axis=(-3, -2))
    mask = jnp.asarray(mask, dtype=bool)
    if mask.shape != (*keys.shape[:-3], length):
        raise ValueError(f"mask must be {(*keys.shape[:-3], length)}, one entry per key, got {mask.shape}")
    # The lowest finite number and not -inf: a row without any key then gives equal weights, zeroed below, and no NaN.
    logits = jnp.where(mask[..., None, None, :], logits, jnp.finfo(jnp.float32).min)
    return jnp.where(mask, jax.nn.softmax(logits, axis=-1).mean(axis=(-3, -2)), 0.0)


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
