"""What the protocol costs on accelerators, estimated before it starts from published rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.core import loading
from experiments.core.methods import BASELINE
from experiments.evaluation.batches import Batches
from experiments.evaluation.worker import GROUP, WorkerConfig
from experiments.metrics.costs import prefill_flops
from experiments.reports import tables
from experiments.reports.tables import Column
from experiments.speed.targets import CHIPS
from models.io.hub import find_checkpoint

UTILISATION = 0.4
"""The share of a chip's published rate that prefills are taken to reach: an assumption, and no measurement."""


def flops(config: WorkerConfig) -> dict[str, int]:
    """Operations of one question's prefill, by cell, of which a checkpoint's small files tell enough.

    Raises:
      As `ModelWorker`, and FileNotFoundError where the checkpoint is not to be had.
    """
    given, prompt = config.model, config.prompt
    folder = find_checkpoint(given.source, revision=given.revision, weights=False)
    checkpoint = loading.load_without_weights(folder, image_aspect_ratio=prompt.image_aspect_ratio)
    loading.check_square(given.source, checkpoint.llava)
    batches = Batches(checkpoint, config.questions, prompt, 1, config.seed)
    cells = config.comparison.cells(checkpoint.llava, length=batches.length, visual=batches.visual)
    return {name: prefill_flops(checkpoint.llava.config, batches.length, cell.cuts) for name, cell in cells.items()}


def rows(counts: Mapping[str, int | None], cost: Mapping[str, int]) -> list[dict[str, Any]]:
    """What each set costs, and all together.

    Args:
      counts: of questions, by set; None where that is not known.
      cost: of a question, by cell. Every `GROUP` of cells has vanilla once more, beside which its answers are seen.

    Returns:
      By set `questions`, `answers`, `flops`, and `hours` by chip; None, and no hours, where that is not known.
    """
    each = sum(cost.values()) + -(-len(cost) // GROUP) * cost[BASELINE]
    found = []
    for label, count in {**counts, "all that are known": sum(filter(None, counts.values()))}.items():
        whole = None if count is None else count * each
        hours = {} if whole is None else {n: whole / chip.flops / UTILISATION / 3600 for n, chip in CHIPS.items()}
        answers = None if count is None else count * len(cost)
        found.append({"set": label, "questions": count, "answers": answers, "flops": whole, "hours": hours})
    return found


def text(found: Sequence[Mapping[str, Any]], cost: Mapping[str, int]) -> str:
    """The plan for people."""

    def hours(chip: str) -> Column:
        return f"{chip}, h", lambda row: f"{row['hours'][chip]:.3g}" if row["hours"] else ""

    columns: list[Column] = [
        ("", lambda row: row["set"]),
        ("questions", lambda row: "not known" if row["questions"] is None else f"{row['questions']:,}"),
        ("answers", lambda row: "" if row["answers"] is None else f"{row['answers']:,}"),
        ("PFLOP", lambda row: "" if row["flops"] is None else f"{row['flops'] / 1e15:,.3g}"),
        *map(hours, CHIPS),
    ]
    note = (
        f"An estimate: {len(cost)} ways to ask, {sum(cost.values()) / 1e12:.4g} TFLOP of prefills for a short "
        f"question; hours of one chip at {100 * UTILISATION:.0f} % of its published dense bfloat16 rate, which is "
        "assumed. Reading images, decoding, compiling and marking come on top; --limit and --methods make it less."
    )
    return f"{tables.plain(tables.cells(columns, found))}\n{note}"
