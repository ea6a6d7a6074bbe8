"""Carving inside a whole sequence: text stays, each image (or all of them together) shrinks to its budget."""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tokencarve_jax.budget import describe, static_number
from tokencarve_jax.carve import carve
from tokencarve_jax.positions import check_positions
from tokencarve_jax.scores.information import DEFAULT


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["hidden", "kept", "indices", "assignment"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class CarvedSequence:
    """What `carve_sequence` leaves of sequences; frozen, a pytree of four arrays. Nothing is checked when it is made.

    S' below is S - N + K, or S - I*N + I*K with I images. Unbatched input leaves all four without their B.

    Attributes:
        hidden: [B, S', D] in the input's dtype.
        kept: [B, S'] int32, the original positions, strictly ascending: what `take` and `shorten` gather with.
        indices: [B, K] or [B, I, K] int32, which of the N visual tokens stand, as in `Carved.indices`.
        assignment: [B, N] or [B, I, N] int32, as in `Carved.assignment`: what a picture of the cut is drawn from.

    Source: what the decoder of TokenCarve (arXiv 2503.10501) goes on with.

    Examples:
        >>> hidden, attention = jnp.ones((1, 8, 2)), jnp.linspace(0, 1, 8)[None]
        >>> cut = carve_sequence(hidden, attention, jnp.array([[1, 2, 3, 4, 5, 6]]), keep=2)
        >>> cut.hidden.shape, cut.kept.shape, cut.indices.shape, cut.assignment.shape
        ((1, 4, 2), (1, 4), (1, 2), (1, 6))
        >>> cut.take(jnp.ones((3, 1, 8)), axis=2, batch=1).shape  # positions with three axes
        (3, 1, 4)
        >>> cache = {"keys": jnp.ones((1, 8, 2, 5)), "values": jnp.ones((1, 8, 2, 5))}  # of an earlier layer
        >>> jax.tree.map(jnp.shape, cut.shorten(cache, axis=1, room=3))
        {'keys': (1, 7, 2, 5), 'values': (1, 7, 2, 5)}
        >>> cut.length, cut.hidden.shape[1]  # the next token's position, and its slot in the cache
        (8, 4)
    """

    hidden: jax.Array
    kept: jax.Array
    indices: jax.Array
    assignment: jax.Array

    @property
    def length(self) -> int:
        """S, the length before the cut, is the next token's position where the row has no padding. Its slot is S'."""
        lead = self.kept.ndim - 1
        gone = math.prod(self.assignment.shape[lead:]) - math.prod(self.indices.shape[lead:])
        return self.kept.shape[-1] + gone

    def take(self, array: ArrayLike, *, axis: int | Sequence[int], batch: int | None = 0) -> jax.Array:
        """What is left of an array that is aligned with the sequence, bit for bit.

        Positions [B, S]                 `take(array, axis=1)`
        Positions of M-RoPE [3, B, S]    `take(array, axis=2, batch=1)`
        Positions of all rows [S]        `take(array, axis=0, batch=None)`, which gives [B, S']
        Mask [B, S, S]                   `take(array, axis=(1, 2))`
        Stacked caches [B, L, S, K, d]   `take(array, axis=2)`
        Stacked caches [L, B, S, K, d]   `take(array, axis=2, batch=1)`

        Args:
            array: Any dtype, of length S along `axis` and B along `batch`.
            axis: Which axis of `array` is the sequence, or several that all are. Negative ones count from the end.
            batch: Which axis of `array` is the batch. None: it has none, all rows share it, and the result has B in
                front of its axes. A cut of unbatched input has no batch and does not read this.

        Returns:
            `array` with S' in place of S.

        Raises:
            ValueError: An axis does not exist, is named twice, or is not as long as the sequence or the batch.
        """
        array = jnp.asarray(array)
        axes = _axes(array, axis if isinstance(axis, Sequence) else (axis,))
        if self.kept.ndim > 2:
            raise ValueError(f"under more than one batch axis, call it inside vmap; kept has shape {self.kept.shape}")
        for a in axes:
            if array.shape[a] != self.length:
                more = "; slice off first what is behind the sequence" if array.shape[a] > self.length else ""
                raise ValueError(f"axis {a} must be the uncut sequence of {self.length}, got shape {array.shape}{more}")
        if self.kept.ndim == 1:
            return _gather(array, self.kept, axes)
        if batch is None:
            return jax.vmap(functools.partial(_gather, axes=axes), in_axes=(None, 0))(array, self.kept)
        *_, b = _axes(array, (*axes, batch))
        if array.shape[b] != self.kept.shape[0]:
            raise ValueError(
                f"axis {b} must be the batch of {self.kept.shape[0]}, got shape {array.shape}; `batch` names another "
                "axis, or is None where all rows share the array"
            )
        inner = functools.partial(_gather, axes=tuple(a - (a > b) for a in axes))
        return jax.vmap(inner, in_axes=(b, 0), out_axes=b)(array, self.kept)

    def shorten(self, cache_tree: Any, *, axis: int, batch: int | None = 0, room: int = 0) -> Any:
        """Earlier layers' caches without what was cut, and with room for the tokens to come.

        Args:
            cache_tree: A pytree of arrays as `take` takes them, for example a list of (keys, values) [B, S, K, d]. The
                layers from the cut on are short already and do not belong in it.
            axis: Which axis of each array is the sequence.
            batch: Which axis of each array is the batch, as in `take`.
            room: How many slots of zeros to append, a static int.

        Returns:
            The tree, with S' + room in place of S.

        Raises:
            TypeError: `room` is no int.
            ValueError: `room` is negative, or an array does not fit; the message says which.
        """
        slots = static_number(room)
        if not isinstance(slots, int):
            raise TypeError(f"room must be an int, known before tracing, got {describe(room)}")
        if slots < 0:
            raise ValueError(f"room must be 0 or more, got {slots}")

        def one(path: tuple[Any, ...], array: ArrayLike) -> jax.Array:
            try:
                short = self.take(array, axis=axis, batch=batch)
            except ValueError as error:
                raise ValueError(f"cache_tree{jax.tree_util.keystr(path)}: {error}") from error
            widths = [(0, 0)] * short.ndim
            widths[axis if axis < 0 else axis - jnp.ndim(array)] = (0, slots)  # from the end: B may be new in front
            return jnp.pad(short, widths)

        return jax.tree_util.tree_map_with_path(one, cache_tree)


def carve_sequence(
    hidden: ArrayLike,
    attention: ArrayLike,
    visual_positions: ArrayLike,
    *,
    keep: float | int,
    attention_weight: float = 0.5,
    oversample: float = 1.5,
    information: str = DEFAULT,
    features: ArrayLike | None = None,
    debias: bool = False,
    valid: ArrayLike | None = None,
) -> CarvedSequence:
    """Carve the visual tokens of sequences and leave everything else untouched, bit for bit and in order.

    Args:
        hidden: [B, S, D], any float dtype: the hidden states entering the layer. Or [S, D], one sequence: then B is
            missing from all arrays here, and from the result.
        attention: [B, S], any float dtype: the previous layer's `last_query_attention`.
        visual_positions: Where the visual tokens stand, int32; distinct, within 0..S-1, need not be contiguous.
            [B, N]: one joint budget over all visual tokens of a sequence. [B, I, N]: one budget per image,
            each of the I images keeps K of its N.
            A row with fewer visual tokens than N lists padding slots of its sequence as the missing entries, with
            `valid` False there: they are dropped first, and shapes stay static. The function `visual_positions`
            makes both from a mask.
        keep: As in `carve`, counted on N: a float in (0, 1] or an int in 1..N.
        attention_weight: See `carve`.
        oversample: See `carve`.
        information: See `carve`.
        features: [B, S, F] to compute the information score from instead of `hidden`, see `carve`.
        debias: See `carve`; the trend is fitted along the last axis of `visual_positions`.
        valid: [B, N] or [B, I, N] bool, shaped as `visual_positions`; False marks padding.

    Returns:
        A `CarvedSequence`.

    Raises:
        TypeError: An array has the wrong kind of dtype, or `keep` is no Python or NumPy number.
        ValueError: A shape or an option does not fit; the message says which. Also concrete `visual_positions` that
            are out of range or not distinct. For that, a call outside `jit` copies them to the host if they are not
            there already, and so waits for them, though not for `hidden`. Traced ones are not checked.

    Source: TokenCarve (arXiv 2503.10501); survivors keep their original positions, as in the released code.

    Examples:
        >>> hidden = jnp.arange(12.0).reshape(1, 6, 2)
        >>> attention = jnp.array([[0.1, 0.2, 0.05, 0.3, 0.05, 0.3]])
        >>> out = carve_sequence(hidden, attention, jnp.array([[1, 2, 3, 4]]), keep=0.5)
        >>> print(out.kept, out.assignment, out.hidden.shape)
        [[0 1 3 5]] [[ 0 -1  1  1]] (1, 4, 2)
    """
    hidden, attention = jnp.asarray(hidden), jnp.asarray(attention)
    positions = jnp.asarray(visual_positions)
    if hidden.ndim not in (2, 3):
        raise ValueError(f"hidden must be [B, S, D], or [S, D] unbatched, got shape {hidden.shape}")
    *lead, length, _ = hidden.shape
    if attention.shape != (*lead, length):
        raise ValueError(
            f"attention must be {(*lead, length)}, one entry per position, got {attention.shape}; if its last axis is "
            "the number of heads, last_query_attention was given keys head first"
        )
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(f"visual_positions must be integers, got {positions.dtype}")
    if positions.ndim - len(lead) not in (1, 2) or positions.shape[: len(lead)] != (*lead,):
        front = f"{lead[0]}, " if lead else ""
        raise ValueError(f"visual_positions must be [{front}N] or [{front}I, N], got shape {positions.shape}")
    if math.prod(positions.shape[len(lead) :]) > length:
        count = math.prod(positions.shape[len(lead) :])
        raise ValueError(f"{count} visual positions cannot be distinct in a sequence of {length}")
    check_positions(visual_positions, positions, length, batched=bool(lead))
    if features is not None:
        features = jnp.asarray(features)
        if features.shape[:-1] != (*lead, length):
            raise ValueError(f"features must be {(*lead, length)} and F, got shape {features.shape}")
    if valid is not None:
        valid = jnp.asarray(valid)
        if valid.shape != positions.shape:
            raise ValueError(f"valid must be shaped as visual_positions {positions.shape}, got {valid.shape}")

    arrays = (hidden, attention, positions, features, valid)
    if not lead:
        arrays = jax.tree.map(functools.partial(jnp.expand_dims, axis=0), arrays)
    hidden, attention, positions, features, valid = arrays
    batch = hidden.shape[0]
    carved = carve(
        _at(hidden, positions),
        _at(attention[..., None], positions)[..., 0],
        keep=keep,
        attention_weight=attention_weight,
        oversample=oversample,
        information=information,
        features=None if features is None else _at(features, positions),
        debias=debias,
        valid=valid,
    )
    standing = jnp.take_along_axis(positions, carved.indices, axis=-1).reshape(batch, -1)
    rows = carved.tokens.reshape(batch, standing.shape[1], -1)
    hidden, kept = jax.vmap(splice)(hidden, rows, positions.reshape(batch, -1), standing)
    cut = CarvedSequence(hidden=hidden, kept=kept, indices=carved.indices, assignment=carved.assignment)
    return cut if lead else jax.tree.map(functools.partial(jnp.squeeze, axis=0), cut)


def _at(values: jax.Array, positions: jax.Array) -> jax.Array:
    """The values [B, S, D] at positions [B, ...]: [B, ..., D]."""
    batch = positions.shape[0]
    rows = jnp.take_along_axis(values, positions.reshape(batch, -1, 1), axis=1)
    return rows.reshape(*positions.shape, values.shape[-1])


def splice(hidden: jax.Array, rows: jax.Array, visual: jax.Array, standing: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One sequence [S, D]: drop the `visual` positions but the `standing` ones, which take the values `rows`."""
    length = hidden.shape[0]
    gone = jnp.zeros(length, dtype=bool).at[visual].set(True).at[standing].set(False)
    kept = jnp.argsort(gone, stable=True)[: length - visual.size + standing.size].astype(jnp.int32)
    return jnp.take(hidden.at[standing].set(rows), kept, axis=0), kept


def _axes(array: jax.Array, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes counted from the front."""
    numbers = [operator.index(axis) for axis in axes]
    for axis in numbers:
        if not -array.ndim <= axis < array.ndim:
            raise ValueError(f"there is no axis {axis} in shape {array.shape}")
    counted = tuple(axis % array.ndim for axis in numbers)
    if len(set(counted)) < len(counted):
        raise ValueError(f"axes {(*numbers,)} of shape {array.shape}, the batch among them, are not distinct")
    return counted


def _gather(array: jax.Array, kept: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`array` at the places `kept` [S'] along all `axes`."""
    for axis in axes:
        array = jnp.take(array, kept, axis=axis)
    return array
