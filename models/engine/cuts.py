"""A cut, carried out on a sequence: gather what the compressor declares as evidence, let it decide, shorten.

Axis letters: B batch, S sequence, I images of a row, N visual tokens, K kept, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.engine.plan import Cut, Schedule
from models.engine.prompt import Prompt
from models.engine.relevance import without_unused_questions
from models.engine.sequence import CutRecord, Sequence, Survivors
from tokencarve_jax import EVIDENCE, Selection, Tokens
from tokencarve_jax.tokens import gather, rows

_SHARED = ("key", "projector")  # the same for all images


def gather_evidence(
    cut: Cut, hidden: jax.Array, sequence: Sequence, known: Mapping[str, Callable[[], Any]], *, images: int | None
) -> tuple[Tokens, dict[str, Any]]:
    """The visual tokens before a cut, and the evidence that its compressor declares; arguments as for `apply`.

    Returns:
      Of shape [B, N], or [B, I, N / I] where the cut has a budget for each image.
    """
    evidence = {name: known[name]() for name in cut.compressor.evidence if name in known}
    slots = sequence.visual_slots
    tokens = Tokens(
        values=rows(hidden, slots),
        valid=sequence.preferred,
        sizes=sequence.sizes,
        positions=rows(sequence.positions, slots),
        grid=sequence.grid if cut.scope == "image" or images == 1 else None,  # several images are no grid
    )
    if cut.scope == "image":
        assert images is not None  # the plan has seen to it
        tokens = jax.tree.map(lambda x: x.reshape(len(hidden), images, -1, *x.shape[2:]), tokens)
        evidence = {name: _for_each_image(name, value, images) for name, value in evidence.items()}
    return tokens, evidence


def without_unused(prompt: Prompt, schedule: Schedule) -> Prompt:
    """A packed batch without the questions and the grid that no cut reads: it shares the program of those without.

    Raises:
      ValueError: a cut needs questions, and the prompt has none.
    """
    reads_grid = any(cut.compressor.reads_grid for cut in schedule)
    return dataclasses.replace(without_unused_questions(prompt, schedule), grid=prompt.grid if reads_grid else None)


def apply(
    cut: Cut, hidden: jax.Array, sequence: Sequence, known: Mapping[str, Callable[[], Any]], *, images: int | None
) -> tuple[jax.Array, Sequence, jax.Array, CutRecord]:
    """Shorten a sequence.

    Args:
      cut: with a count.
      hidden: [B, S, D].
      sequence: of the hidden states.
      known: evidence by name, computed when it is called.
      images: equal stretches of the visual tokens, one per image, where the cut has a budget for each.

    Returns:
      [B, S', D], the shorter sequence, [B, S'] int32 which slots are left, and what the cut did.
    """
    tokens, evidence = gather_evidence(cut, hidden, sequence, known, images=images)
    left = cut.compressor(tokens, keep=int(cut.keep), **evidence)
    values, sizes, record = left.tokens.values, left.tokens.sizes, CutRecord(left.indices, left.assignment)
    batch, parts = len(hidden), 1
    if cut.scope == "image":
        parts = tokens.shape[1]
        record = CutRecord.of_images(left.indices, left.assignment)
        values, sizes = values.reshape(batch, -1, values.shape[-1]), sizes.reshape(batch, -1)
    found = {what: rows(array, record.indices) for what, array in sequence.evidence.items()}
    joined = Selection(record.indices, record.assignment)
    rest = [Tokens(x, sequence.preferred, sequence.sizes, sequence.positions[:, :0]) for x in sequence.deepstack]
    deepstack = tuple(gather(tokens, joined).tokens.values for tokens in rest)
    return sequence.shorten(hidden, Survivors(record, values, sizes, found, deepstack), cut, images=parts)


def _for_each_image(name: str, value: Any, images: int) -> Any:
    """Evidence for one row, [B, ...], as evidence for each of its images, [B, I, ...]."""
    letters = EVIDENCE[name]
    if name in _SHARED:
        return value
    if "N" not in letters:
        return jnp.broadcast_to(value[:, None], (len(value), images, *value.shape[1:]))
    axis = 1 + letters.index("N")
    split = value.reshape(*value.shape[:axis], images, -1, *value.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 1)
