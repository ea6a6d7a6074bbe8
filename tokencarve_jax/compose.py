"""Cuts inside a whole sequence, by any method: text stays, and each image, or all of them, shrinks to its budget."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tokencarve_jax.budget import describe
from tokencarve_jax.carve import Carved, carve
from tokencarve_jax.compressor import EVIDENCE, Compressor
from tokencarve_jax.positions import VisualPositions, check_positions
from tokencarve_jax.registry import COMPRESSORS
from tokencarve_jax.scores.information import DEFAULT
from tokencarve_jax.sequence import CarvedSequence, splice
from tokencarve_jax.tokens import Tokens


def compress_sequence(
    hidden: ArrayLike,
    positions: ArrayLike | VisualPositions,
    method: str | Compressor,
    *,
    keep: float | int,
    valid: ArrayLike | None = None,
    **evidence: Any,
) -> CarvedSequence:
    """Shrink the visual tokens of sequences by any method; everything else stays, bit for bit and in order.

    Args:
        hidden: [B, S, D], any float dtype: the hidden states entering a layer. Or [S, D], one sequence: then B is
            missing from all arrays here, and from the result.
        positions: Where the visual tokens stand, as the function `visual_positions` returns it, or the array alone,
            integers, distinct and within 0..S-1, not necessarily contiguous.
            [B, N]: one joint budget over all visual tokens of a sequence. [B, I, N]: one budget per image,
            each of the I images keeps K of its N. [N]: the same in all rows.
        method: A name in `COMPRESSORS`, or a `Compressor`.
        keep: Counted on N: a float in (0, 1] is a fraction, an int in 1..N a count.
        valid: Bool, shaped as `positions`, False at padding slots, which rows with fewer visual tokens list and which
            are dropped first. What `visual_positions` returns brings its own.
        **evidence: What methods may ask to be told, by the names and letters of `EVIDENCE`, B in front. Where that
            says N it is as long as the sequence, S, or lists the visual tokens in the order of `positions`. What the
            method does not ask for is ignored, so that one call serves many methods.

    Returns:
        A `CarvedSequence`.

    Raises:
        KeyError: No method has that name; the message lists all.
        TypeError: An array has the wrong kind of dtype, `keep` is no number of Python or NumPy, evidence is missing, or
            nothing is called like that.
        ValueError: A shape does not fit, or concrete `positions` are out of range or not distinct, see
            `carve_sequence`.

    Source: where and how each method cuts is its paper's; survivors keep their original positions here.

    Examples:
        >>> hidden, row = jnp.arange(12.0).reshape(1, 6, 2), jnp.array([[0.1, 0.2, 0.05, 0.3, 0.05, 0.3]])
        >>> cut = compress_sequence(hidden, jnp.array([1, 2, 3, 4]), "fastv", keep=2, query_attention=row)
        >>> print(cut.kept, cut.assignment, cut.hidden.shape)
        [[0 1 3 5]] [[ 0 -1  1 -1]] (1, 4, 2)
    """
    compressor = COMPRESSORS[method] if isinstance(method, str) else method
    if not isinstance(compressor, Compressor):
        raise TypeError(f"method must be a name in COMPRESSORS or a Compressor, got {describe(method)}")
    if unknown := [name for name in evidence if name not in EVIDENCE]:
        raise TypeError(f"there is no evidence {unknown[0]!r}; methods may ask for {', '.join(EVIDENCE)}")
    told = {name: (value, EVIDENCE[name]) for name, value in evidence.items() if name in compressor.evidence}

    def shrink(tokens: Tokens, told: dict[str, Any]) -> Carved:
        left = compressor(tokens, keep=keep, **told)
        return Carved(left.tokens.values, left.indices, left.assignment)

    return _cut(hidden, positions, valid, told, shrink)


def carve_sequence(
    hidden: ArrayLike,
    attention: ArrayLike,
    visual_positions: ArrayLike | VisualPositions,
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
            makes both from a mask, and what it returns goes in as it is. [N]: the same in all rows.
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

    def shrink(tokens: Tokens, told: dict[str, Any]) -> Carved:
        return carve(
            tokens.values,
            **told,
            keep=keep,
            attention_weight=attention_weight,
            oversample=oversample,
            information=information,
            debias=debias,
            valid=tokens.valid,
        )

    told = {"attention": (attention, ("N",)), "features": (features, ("N", "F"))}
    return _cut(hidden, visual_positions, valid, told, shrink)


def _cut(
    hidden: ArrayLike,
    given: ArrayLike | VisualPositions,
    valid: ArrayLike | None,
    evidence: Mapping[str, tuple[Any, tuple[str, ...]]],
    shrink: Callable[[Tokens, dict[str, Any]], Carved],
) -> CarvedSequence:
    """Shrink what stands at positions, given evidence and the letters of its axes, and put it back between the rest."""
    if isinstance(given, tuple) and len(given) == 2 and jnp.asarray(given[1]).dtype == jnp.bool_:
        given, valid = given[0], given[1] if valid is None else valid
    place: Any = given
    hidden, positions = jnp.asarray(hidden), jnp.asarray(place)
    if hidden.ndim not in (2, 3):
        raise ValueError(f"hidden must be [B, S, D], or [S, D] unbatched, got shape {hidden.shape}")
    *lead, length, _ = hidden.shape
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(f"visual positions must be integers, got {positions.dtype}")
    valid = jnp.ones(positions.shape, bool) if valid is None else jnp.asarray(valid, bool)
    if valid.shape != positions.shape:
        raise ValueError(f"valid must be shaped as the visual positions {positions.shape}, got {valid.shape}")
    if lead and positions.ndim == 1:
        place = positions = jnp.broadcast_to(positions, (*lead, *positions.shape))
        valid = jnp.broadcast_to(valid, positions.shape)
    if positions.ndim - len(lead) not in (1, 2) or positions.shape[: len(lead)] != (*lead,):
        front = f"{lead[0]}, " if lead else ""
        raise ValueError(f"visual positions must be [{front}N] or [{front}I, N], got shape {positions.shape}")
    count = math.prod(positions.shape[len(lead) :])
    if count > length:
        raise ValueError(f"{count} visual positions cannot be distinct in a sequence of {length}")
    check_positions(place, positions, length, batched=bool(lead))

    told = {
        name: _aligned(name, array, letters, (*lead, length), positions) if letters else array
        for name, (array, letters) in evidence.items()
        if array is not None
    }
    left = shrink(Tokens.of(_at(hidden, positions, len(lead)), valid=valid, positions=positions), told)
    standing = jnp.take_along_axis(positions, left.indices, axis=-1).reshape(*lead, -1)
    rows = left.tokens.reshape(*standing.shape, -1)
    put_back = jax.vmap(splice) if lead else splice
    short, kept = put_back(hidden, rows, positions.reshape(*lead, -1), standing)
    return CarvedSequence(hidden=short, kept=kept, indices=left.indices, assignment=left.assignment)


def _aligned(
    name: str, array: ArrayLike, letters: tuple[str, ...], sequence: tuple[int, ...], positions: jax.Array
) -> jax.Array:
    """Evidence about the sequence [B, S] or the visual tokens, as evidence about the latter."""
    array = jnp.asarray(array)
    *lead, length = sequence
    front = positions.shape[:-1]
    if "N" not in letters:
        shared = (
            len(front) > len(lead) and array.ndim == len(lead) + len(letters) and array.shape[: len(lead)] == (*lead,)
        )
        return (
            jnp.broadcast_to(jnp.expand_dims(array, len(lead)), (*front, *array.shape[len(lead) :]))
            if shared
            else array
        )
    axis = letters.index("N")

    def fits(before: tuple[int, ...], count: int) -> bool:
        rest = array.shape[len(before) :]
        return array.shape[: len(before)] == before and len(rest) == len(letters) and rest[axis] == count

    if fits((*lead,), length):
        return _at(array, positions, len(lead), axis)
    if fits(front, positions.shape[-1]):
        return array
    last = array.ndim == len(sequence) == len(lead) + len(letters)
    hint = "; if its last axis is the number of heads, last_query_attention was given keys head first" if last else ""
    of_sequence, of_tokens = ([*start, *letters] for start in (lead, front))
    of_sequence[len(lead) + axis], of_tokens[len(front) + axis] = length, positions.shape[-1]
    raise ValueError(
        f"{name} must be {_shape(of_sequence)}, one entry per position, or {_shape(of_tokens)}, one per visual token, "
        f"got {array.shape}{hint}"
    )


def _shape(axes: list[Any]) -> str:
    return str(tuple(axes)).replace("'", "")


def _at(array: jax.Array, positions: jax.Array, lead: int, axis: int = 0) -> jax.Array:
    """What stands at positions [B, ...] along that axis behind the `lead` first ones: [B, S, D] becomes [B, ..., D]."""
    array = jnp.moveaxis(array, lead + axis, lead)
    flat = positions.reshape(*positions.shape[:lead], -1, *[1] * (array.ndim - lead - 1))
    rows = jnp.take_along_axis(array, flat, axis=lead)
    rows = rows.reshape(*positions.shape, *array.shape[lead + 1 :])
    return jnp.moveaxis(rows, positions.ndim - 1, positions.ndim - 1 + axis)
