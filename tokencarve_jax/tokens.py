"""Tokens, what a compressor decides about them, and the one function that moves values accordingly.

Axis letters: N tokens before, K after, D width, A axes of a position.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from tokencarve_jax.promotion import usual_promotion

_pytree = functools.partial(jax.tree_util.register_dataclass, meta_fields=[])


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "valid", "sizes", "positions"],
    meta_fields=["grid"],
)
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A set of tokens, or batches of sets; frozen, a pytree of four arrays. `Tokens.of` makes and checks one.

    Attributes:
        values: [..., N, D], any float dtype.
        valid: [..., N] bool, False marks padding.
        sizes: [..., N] float32, how many original tokens each one stands for.
        positions: [..., N, A] int32, where each one stands: A = 1, or 3 for time, row and column (M-RoPE).
        grid: frames, rows and columns whose cells the valid tokens of every set are, in reading order; None where that
            is not so or not known. Static. Spatial methods read it, and take tokens without one in a row.

    Source: sizes are those of ToMe (arXiv 2210.09461); the rest is what every decoder keeps of its tokens.

    Examples:
        >>> tokens = Tokens.of(jnp.ones((2, 5, 3)))
        >>> jax.tree.map(jnp.shape, tokens)
        Tokens(values=(2, 5, 3), valid=(2, 5), sizes=(2, 5), positions=(2, 5, 1), grid=None)
    """

    values: jax.Array
    valid: jax.Array
    sizes: jax.Array
    positions: jax.Array
    grid: tuple[int, int, int] | None = None

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        *,
        valid: ArrayLike | None = None,
        sizes: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        grid: tuple[int, int, int] | None = None,
    ) -> "Tokens":
        """Tokens from their values; the rest as given, or as for tokens that are valid, single and in a row.

        Args:
            values: [..., N, D], any float dtype.
            valid: [..., N] bool; None means all are.
            sizes: [..., N], converted to float32; None means one each.
            positions: [..., N] or [..., N, A] integers; None means 0, 1, 2, ...
            grid: (frames, rows, columns), at least 1 each and N cells at most; an image has one frame.

        Returns:
            The tokens.

        Raises:
            TypeError: `values` is not floating, or `positions` are no integers.
            ValueError: The shapes do not fit together, or `grid` is none of N tokens.
        """
        values = jnp.asarray(values)
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise TypeError(f"values must be floating, got {values.dtype}")
        if values.ndim < 2:
            raise ValueError(f"values must be [..., N, D], got shape {values.shape}")
        shape = values.shape[:-1]
        valid = jnp.ones(shape, bool) if valid is None else jnp.asarray(valid, bool)
        sizes = jnp.ones(shape, jnp.float32) if sizes is None else jnp.asarray(sizes, jnp.float32)
        positions = jnp.arange(shape[-1]) if positions is None else jnp.asarray(positions)
        if not jnp.issubdtype(positions.dtype, jnp.integer):
            raise TypeError(f"positions must be integers, got {positions.dtype}")
        placed = positions.shape[:-1]
        if positions.ndim <= len(shape):  # one axis, shared by the sets of a batch or not
            placed = positions.shape
            if placed and placed == shape[-positions.ndim :]:
                positions, placed = jnp.broadcast_to(positions, shape)[..., None], shape
        for name, got in (("valid", valid.shape), ("sizes", sizes.shape), ("positions", placed)):
            if got != shape:
                raise ValueError(f"{name} must have shape {shape}, one entry per token, got {got}")
        if grid is not None and (len(grid) != 3 or min(grid) < 1 or math.prod(grid) > shape[-1]):
            raise ValueError(f"grid must be (frames, rows, columns) of {shape[-1]} tokens or fewer, got {grid}")
        return cls(values, valid, sizes, positions.astype(jnp.int32), grid)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., N)."""
        return self.values.shape[:-1]


@functools.partial(_pytree, data_fields=["indices", "assignment", "weights", "values"])
@dataclasses.dataclass(frozen=True)
class Selection:
    """What a compressor decides: which tokens stand, and which of the others join them; a pytree.

    Attributes:
        indices: [..., K] int32, the tokens that stand, strictly ascending.
        assignment: [..., N] int32, the row (0..K-1) that each token joins, -1 where it is dropped; a token that stands
            is assigned to its own row. None: nothing joins, all others are dropped.
        weights: [..., N] float, weights of the mean that a group becomes; None: the tokens' sizes.
        values: [..., K, D], what the rows become instead of a mean, for methods that have a rule of their own.

    Source: this package's; it holds what the methods of its registry have in common.

    Examples:
        >>> Selection(indices=jnp.array([0, 2]), assignment=jnp.array([0, 1, 1])).weights is None
        True
    """

    indices: jax.Array
    assignment: jax.Array | None = None
    weights: jax.Array | None = None
    values: jax.Array | None = None


@functools.partial(_pytree, data_fields=["tokens", "indices", "assignment"])
@dataclasses.dataclass(frozen=True)
class Compressed:
    """What is left after a compressor; frozen, a pytree.

    Attributes:
        tokens: `Tokens` of K.
        indices: [..., K] int32, where each of them stood among the N, strictly ascending.
        assignment: [..., N] int32, the row that each of the N lives on in, -1 where it was dropped.

    Source: this package's.

    Examples:
        >>> left = gather(Tokens.of(jnp.ones((5, 3))), Selection(jnp.array([1, 4])))
        >>> left.tokens.shape, left.indices.tolist(), left.assignment.tolist()
        ((2,), [1, 4], [-1, 0, -1, -1, 1])
    """

    tokens: Tokens
    indices: jax.Array
    assignment: jax.Array


def headroom(values: jax.Array) -> jax.Array:
    """A power of two [..., 1, 1] that lets finite values [..., N, D] be summed: 1 unless they are near the limit."""
    largest = jnp.abs(lax.stop_gradient(values)).max((-2, -1), keepdims=True, initial=0)
    near = largest > jnp.finfo(values.dtype).max / _MOST
    return jnp.where(near, 1 / _MOST, 1).astype(values.dtype)


_MOST = 2.0**24  # of the weights in a sum


def within(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """As another dtype; what is beyond its range becomes its largest number, and not infinite."""
    largest = float(jnp.finfo(dtype).max)
    return jnp.clip(values, -largest, largest).astype(dtype)


@usual_promotion
def gather(tokens: Tokens, selection: Selection) -> Compressed:
    """Carry a decision out: the only place where values, sizes and positions move.

    A group becomes the mean of its members, weighted by their sizes unless the selection has weights of its own; a row
    that nothing joined stays as it is, bit for bit. Padding, and tokens with a NaN or an infinity, join nothing, and
    nothing joins them: such an assignment becomes -1. A row keeps the position of the token that stands there, and its
    size is the sum of its members'.

    Args:
        tokens: N of them, `values` [..., N, D].
        selection: the decision, `indices` [..., K].

    Returns:
        The K tokens that are left, `values` [..., K, D] in the input's dtype, and the decision in full.

    Raises:
        TypeError, ValueError: What JAX raises for shapes that do not fit together.

    Source: the size-weighted mean is ToMe's (arXiv 2210.09461).

    Examples:
        >>> tokens = Tokens.of(jnp.array([[2.0], [4.0], [9.0]]))
        >>> left = gather(tokens, Selection(jnp.array([0, 2]), assignment=jnp.array([0, 0, 1])))
        >>> left.tokens.values.tolist(), left.tokens.sizes.tolist()
        ([[3.0], [9.0]], [2.0, 1.0])
    """
    indices = selection.indices
    values, valid, sizes, positions = (
        rows(array, indices) for array in (tokens.values, tokens.valid, tokens.sizes, tokens.positions)
    )
    assignment = standing = rows_of(indices, tokens.shape[-1])
    if selection.assignment is not None:
        precise = jnp.promote_types(tokens.values.dtype, jnp.float32)
        counts = tokens.valid & jnp.isfinite(tokens.values).all(-1)
        joins = selection.assignment[..., None, :] == jnp.arange(indices.shape[-1], dtype=jnp.int32)[:, None]
        joins &= counts[..., None, :] & rows(counts, indices)[..., None]  # [..., K, N]
        assignment = jnp.where(joins.any(-2), selection.assignment, standing)
        grown = joins.sum(-1) > 1
        sizes = jnp.where(grown, jnp.where(joins, tokens.sizes[..., None, :], 0).sum(-1), sizes)
        if selection.values is None:
            weights = tokens.sizes if selection.weights is None else selection.weights
            share = jnp.where(joins, weights[..., None, :].astype(precise), 0)
            total = share.sum(-1, keepdims=True)
            finite = jnp.where(counts[..., None], tokens.values.astype(precise), 0)
            scale = headroom(finite)
            mean = jnp.matmul(share, finite * scale, precision=lax.Precision.HIGHEST) / jnp.where(total > 0, total, 1)
            values = jnp.where(grown[..., None] & (total > 0), within(mean / scale, values.dtype), values)
    if selection.values is not None:
        values = selection.values.astype(values.dtype)
    return Compressed(Tokens(values, valid, sizes, positions), indices, assignment)


def rows(array: jax.Array, indices: jax.Array) -> jax.Array:
    """Whatever is aligned with tokens, [..., N, *rest] at indices [..., K]: [..., K, *rest]."""
    axis = indices.ndim - 1
    return jnp.take_along_axis(array, indices.reshape(*indices.shape, *[1] * (array.ndim - indices.ndim)), axis=axis)


def rows_of(indices: jax.Array, num_tokens: int) -> jax.Array:
    """For each of N tokens its row among ascending `indices` [..., K], or -1; [..., N] int32."""
    stands = (indices[..., None, :] == jnp.arange(num_tokens, dtype=jnp.int32)[:, None]).any(-1)
    return jnp.where(stands, jnp.cumsum(stands, axis=-1, dtype=jnp.int32) - 1, -1)
