"""What a cut leaves of sequences, and how what is aligned with them follows."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tokencarve_jax.budget import describe, static_number
from tokencarve_jax.promotion import usual_promotion


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["hidden", "kept", "indices", "assignment"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class CarvedSequence:
    """What a cut leaves of sequences; frozen, a pytree of four arrays. Nothing is checked when it is made.

    S' below is S - N + K, or S - I*N + I*K with I images. Unbatched input leaves all four without their B.

    Attributes:
        hidden: [B, S', D] in the input's dtype.
        kept: [B, S'] int32, the original positions, strictly ascending: what `take` and `shorten` gather with.
        indices: [B, K] or [B, I, K] int32, which of the N visual tokens stand, as in `Carved.indices`.
        assignment: [B, N] or [B, I, N] int32, as in `Carved.assignment`: what a picture of the cut is drawn from.

    Source: what the decoder of TokenCarve (arXiv 2503.10501) goes on with; `compress_sequence` makes it.

    Examples:
        >>> from tokencarve_jax import carve_sequence
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

    def take(self, tree: Any, *, axis: int | Sequence[int], batch: int | None = 0) -> Any:
        """What is left of arrays that are aligned with the sequence, bit for bit.

        Positions [B, S]                 `take(array, axis=1)`
        Positions of M-RoPE [3, B, S]    `take(array, axis=2, batch=1)`
        Positions of all rows [S]        `take(array, axis=0, batch=None)`, which gives [B, S']
        Mask [B, S, S]                   `take(array, axis=(1, 2))`
        Stacked caches [B, L, S, K, d]   `take(array, axis=2)`
        Stacked caches [L, B, S, K, d]   `take(array, axis=2, batch=1)`

        Args:
            tree: An array or a pytree of arrays, any dtypes, each of length S along `axis` and B along `batch`. [S]
                alone, as positions often are, is shared by all rows, whatever `axis` and `batch` say.
            axis: Which axis of each array is the sequence, or several that all are. Negative ones count from the end.
            batch: Which axis of each array is the batch. None: it has none, all rows share it, and the result has B in
                front of its axes. A cut of unbatched input has no batch and does not read this.

        Returns:
            The tree, with S' in place of S.

        Raises:
            ValueError: An axis does not exist, is named twice, or is not as long as the sequence or the batch.
        """
        return _each("tree", tree, functools.partial(self._take, axis=axis, batch=batch))

    def _take(self, array: ArrayLike, *, axis: int | Sequence[int], batch: int | None) -> jax.Array:
        array = jnp.asarray(array)
        if self.kept.ndim > 2:
            raise ValueError(f"under more than one batch axis, call it inside vmap; kept has shape {self.kept.shape}")
        if self.kept.ndim == 2 and array.shape == (self.length,):
            axis, batch = 0, None
        axes = _axes(array, axis if isinstance(axis, Sequence) else (axis,))
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

        def one(array: ArrayLike) -> jax.Array:
            short = self._take(array, axis=axis, batch=batch)
            widths = [(0, 0)] * short.ndim
            along = -1 if jnp.ndim(array) == 1 else axis if axis < 0 else axis - jnp.ndim(array)
            widths[along] = (0, slots)  # from the end: B may be new in front
            return jnp.pad(short, widths)

        return _each("cache_tree", cache_tree, one)


@usual_promotion
def splice(hidden: jax.Array, rows: jax.Array, visual: jax.Array, standing: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One sequence [S, D]: drop the `visual` positions but the `standing` ones, which take the values `rows`."""
    length = hidden.shape[0]
    gone = jnp.zeros(length, dtype=bool).at[visual].set(True).at[standing].set(False)
    kept = jnp.argsort(gone, stable=True)[: length - visual.size + standing.size].astype(jnp.int32)
    return jnp.take(hidden.at[standing].set(rows), kept, axis=0), kept


def _each(name: str, tree: Any, one: Callable[[Any], jax.Array]) -> Any:
    """The tree with `one` done to each array; an error says which."""

    def named(path: tuple[Any, ...], array: ArrayLike) -> jax.Array:
        try:
            return one(array)
        except ValueError as error:
            raise ValueError(f"{name}{jax.tree_util.keystr(path)}: {error}" if path else str(error)) from error

    return jax.tree_util.tree_map_with_path(named, tree)


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
