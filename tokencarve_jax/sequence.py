"""Carving inside a whole sequence: text stays, each image (or all of them together) shrinks to its budget."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tokencarve_jax.carve import carve


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["hidden", "kept", "indices", "assignment"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class CarvedSequence:
    """What `carve_sequence` leaves of sequences; frozen, a pytree of four arrays. Nothing is checked when it is made.

    S' below is S - N + K, or S - I*N + I*K with I images.

    Attributes:
        hidden: [B, S', D] in the input's dtype.
        kept: [B, S'] int32, the original positions, strictly ascending. Gather each earlier layer's KV cache, the
            attention mask and the rotary positions with it.
        indices: [B, K] or [B, I, K] int32, which of the N visual tokens stand, as in `Carved.indices`.
        assignment: [B, N] or [B, I, N] int32, as in `Carved.assignment`: what a picture of the cut is drawn from.

    Source: what the decoder of TokenCarve (arXiv 2503.10501) goes on with.

    Examples:
        >>> hidden, attention = jnp.ones((1, 8, 2)), jnp.linspace(0, 1, 8)[None]
        >>> cut = carve_sequence(hidden, attention, jnp.array([[1, 2, 3, 4, 5, 6]]), keep=2)
        >>> cut.hidden.shape, cut.kept.shape, cut.indices.shape, cut.assignment.shape
        ((1, 4, 2), (1, 4), (1, 2), (1, 6))
        >>> keys = jnp.arange(8.0).reshape(1, 8, 1)  # of an earlier layer's cache
        >>> jnp.take_along_axis(keys, cut.kept[..., None], axis=1).shape
        (1, 4, 1)
    """

    hidden: jax.Array
    kept: jax.Array
    indices: jax.Array
    assignment: jax.Array


def carve_sequence(
    hidden: ArrayLike,
    attention: ArrayLike,
    visual_positions: ArrayLike,
    *,
    keep: float | int,
    attention_weight: float = 0.5,
    oversample: float = 1.5,
    information: str = "gram",
    features: ArrayLike | None = None,
    debias: bool = False,
    valid: ArrayLike | None = None,
) -> CarvedSequence:
    """Carve the visual tokens of sequences and leave everything else untouched, bit for bit and in order.

    Args:
        hidden: [B, S, D], any float dtype: the hidden states entering the layer.
        attention: [B, S], any float dtype: the previous layer's `last_query_attention`.
        visual_positions: Where the visual tokens stand, int32; distinct, within 0..S-1, need not be contiguous.
            [B, N]: one joint budget over all visual tokens of a sequence. [B, I, N]: one budget per image,
            each of the I images keeps K of its N.
            A row with fewer visual tokens than N lists padding slots of its sequence as the missing entries, with
            `valid` False there: they are dropped first, and shapes stay static.
        keep: As in `carve`, counted on N: a Python float in (0, 1] or a Python int in 1..N.
        attention_weight: See `carve`.
        oversample: See `carve`.
        information: See `carve`.
        features: [B, S, F] to compute the information score from instead of `hidden`, see `carve`.
        debias: See `carve`; the trend is fitted along the last axis of `visual_positions`.
        valid: [B, N] or [B, I, N] bool, shaped as `visual_positions`; False marks padding.

    Returns:
        A `CarvedSequence`.

    Raises:
        TypeError: An array has the wrong kind of dtype, or `keep` is no Python number.
        ValueError: A shape or an option does not fit; the message says which.

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
    if hidden.ndim != 3:
        raise ValueError(f"hidden must be [B, S, D], got shape {hidden.shape}")
    batch, length, _ = hidden.shape
    if attention.shape != (batch, length):
        raise ValueError(f"attention must be {(batch, length)}, one entry per position, got {attention.shape}")
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(f"visual_positions must be integers, got {positions.dtype}")
    if positions.ndim not in (2, 3) or positions.shape[0] != batch:
        raise ValueError(f"visual_positions must be [{batch}, N] or [{batch}, I, N], got shape {positions.shape}")
    if positions[0].size > length:
        raise ValueError(f"{positions[0].size} visual positions cannot be distinct in a sequence of {length}")
    if features is not None:
        features = jnp.asarray(features)
        if features.shape[:-1] != (batch, length):
            raise ValueError(f"features must be [{batch}, {length}, F], got shape {features.shape}")
        features = _at(features, positions)
    if valid is not None and jnp.shape(valid) != positions.shape:
        raise ValueError(f"valid must be shaped as visual_positions {positions.shape}, got {jnp.shape(valid)}")
    carved = carve(
        _at(hidden, positions),
        _at(attention[..., None], positions)[..., 0],
        keep=keep,
        attention_weight=attention_weight,
        oversample=oversample,
        information=information,
        features=features,
        debias=debias,
        valid=valid,
    )
    standing = jnp.take_along_axis(positions, carved.indices, axis=-1).reshape(batch, -1)
    rows = carved.tokens.reshape(batch, standing.shape[1], -1)
    hidden, kept = jax.vmap(_splice)(hidden, rows, positions.reshape(batch, -1), standing)
    return CarvedSequence(hidden=hidden, kept=kept, indices=carved.indices, assignment=carved.assignment)


def _at(values: jax.Array, positions: jax.Array) -> jax.Array:
    """The values [B, S, D] at positions [B, ...]: [B, ..., D]."""
    batch = positions.shape[0]
    rows = jnp.take_along_axis(values, positions.reshape(batch, -1, 1), axis=1)
    return rows.reshape(*positions.shape, values.shape[-1])


def _splice(hidden: jax.Array, rows: jax.Array, visual: jax.Array, standing: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One sequence [S, D]: drop the `visual` positions but the `standing` ones, which take the values `rows`."""
    length = hidden.shape[0]
    gone = jnp.zeros(length, dtype=bool).at[visual].set(True).at[standing].set(False)
    kept = jnp.argsort(gone, stable=True)[: length - visual.size + standing.size].astype(jnp.int32)
    return jnp.take(hidden.at[standing].set(rows), kept, axis=0), kept
