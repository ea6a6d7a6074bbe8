"""Where the visual tokens of a sequence stand: from a Boolean mask to the static list that a cut takes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from tokencarve_jax.budget import describe, static_number
from tokencarve_jax.promotion import usual_promotion


class VisualPositions(NamedTuple):
    """What `visual_positions` returns; a pytree that unpacks as `positions, valid`.

    Attributes:
        positions: [..., N] int32, distinct.
        valid: [..., N] bool, False where the position is that of a padding slot.
    """

    positions: jax.Array
    valid: jax.Array


@usual_promotion
def visual_positions(is_image: ArrayLike, *, count: int, mask: ArrayLike | None = None) -> VisualPositions:
    """Turn a Boolean mask of the visual tokens into the positions that `compress_sequence` and `carve_sequence` take.

    The first places of a row are those of its visual tokens, ascending. A row with fewer than `count` goes on with
    places of no visual token, from the end of the sequence backwards; there `valid` is False, and a cut drops them
    first. They must be padding: pass `mask` unless every row has `count` visual tokens or is padded on the
    right by as many slots as it lacks.

    Args:
        is_image: [..., S] bool, True at visual tokens, for example `input_ids == image_token_id`.
        count: N, a static int in 1..S: the most visual tokens that a row has.
        mask: [..., S] bool, False at the padding of the sequence. With it only padding is listed for what a row lacks,
            on whichever side it stands, and a visual token under padding counts as padding.

    Returns:
        `(positions, valid)`, both [..., N]; int32 and bool. With equally large images, `reshape(B, I, N // I)` of both
        gives each image its own budget.

    Raises:
        TypeError: `is_image` or `mask` is not Boolean, or `count` is no int.
        ValueError: `count` or a shape does not fit. Also, where the arrays are concrete: a row has more than `count`
            visual tokens, or with `mask` fewer padding slots than it lacks visual tokens. For that, an array that is
            on a device is copied to the host. Under `jit` nothing is checked: visual tokens beyond `count` are then
            left out, and stay in the sequence like text.

    Source: the bookkeeping around TokenCarve (arXiv 2503.10501), whose released code takes one image at a known place.

    Examples:
        >>> is_image = jnp.array([[False, True, True, True, False, False], [False, True, False, False, False, False]])
        >>> positions, valid = visual_positions(is_image, count=3)
        >>> print(positions)
        [[1 2 3]
         [1 5 4]]
        >>> print(valid)
        [[ True  True  True]
         [ True False False]]
    """
    is_image = _boolean("is_image", is_image)
    if is_image.ndim < 1:
        raise ValueError(f"is_image must be [..., S], got shape {is_image.shape}")
    length = is_image.shape[-1]
    chosen = static_number(count)
    if not isinstance(chosen, int):
        raise TypeError(f"count must be an int, known before tracing, got {describe(count)}")
    if not 1 <= chosen <= length:
        raise ValueError(f"count must be in 1..{length}, the length of the sequence, got {chosen}")
    text = jnp.zeros_like(is_image)
    if mask is not None:
        mask = _boolean("mask", mask)
        if mask.shape != is_image.shape:
            raise ValueError(f"mask must be shaped as is_image {is_image.shape}, got {mask.shape}")
        is_image = is_image & mask
        text = mask & ~is_image
    _check_counts(is_image, text, chosen)
    index = jnp.arange(length, dtype=jnp.int32)
    backwards = 2 * length - index + length * text  # behind all visual tokens, and text behind all padding
    order = jnp.argsort(jnp.where(is_image, index, backwards), axis=-1).astype(jnp.int32)
    positions = lax.slice_in_dim(order, 0, chosen, axis=-1)
    return VisualPositions(positions, jnp.arange(chosen) < is_image.sum(-1, keepdims=True))


def check_positions(given: ArrayLike, positions: jax.Array, length: int, batched: bool) -> None:
    """Refuse `positions`, as `given` by the caller, out of 0..length-1 or twice in a row; if traced, let them pass."""
    host = given if isinstance(given, np.ndarray) else on_host(positions)
    if host is None or not host.size:
        return
    rows = np.sort(host.reshape(host.shape[0] if batched else 1, -1), axis=-1)
    if rows[:, 0].min() < 0 or rows[:, -1].max() >= length:
        raise ValueError(
            f"visual positions must be within 0..{length - 1}, got {rows[:, 0].min()} to {rows[:, -1].max()}; "
            "count from the start of the sequence in hidden"
        )
    twice = np.argwhere(rows[:, 1:] == rows[:, :-1])
    if twice.size:
        row, place = twice[0]
        raise ValueError(
            f"visual positions must be distinct, got {rows[row, place]} twice in row {row}; for what a row lacks, list "
            "padding slots that are False in valid, as `tokencarve_jax.visual_positions` does"
        )


def on_host(array: jax.Array) -> np.ndarray | None:
    """The values of a concrete array, waiting for them; None where they are traced, or partly on other hosts."""
    if isinstance(array, jax.core.Tracer) or not array.is_fully_addressable:
        return None
    return np.asarray(array)


def _check_counts(is_image: jax.Array, text: jax.Array, count: int) -> None:
    visual, real = on_host(is_image), on_host(text)
    if visual is None or real is None:
        return
    most = visual.sum(-1).max(initial=0)
    if most > count:
        raise ValueError(f"count is {count}, but a row has {most} visual tokens; count must be the most of any row")
    longest = (np.maximum(visual.sum(-1), count) + real.sum(-1)).max(initial=0)
    if longest > visual.shape[-1]:
        raise ValueError(
            f"a row needs {longest} slots for its text and {count} visual tokens or padding in their place, and has "
            f"{visual.shape[-1]}: without more padding, text would be listed as visual"
        )


def _boolean(name: str, array: ArrayLike) -> jax.Array:
    array = jnp.asarray(array)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} must be Boolean, for example `input_ids == image_token_id`, got {array.dtype}")
    return array
