"""Asking a question set through the workers of a run, and what is known so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from experiments.core.journal import Journal, OtherRunError
from experiments.core.methods import BASELINE
from experiments.data.questions import QuestionSet
from experiments.evaluation.probe import Probe
from experiments.evaluation.worker import ModelWorker

SHAPE = {
    "indices": [int],
    "errors": {int: str},
    "found": {str: {"prediction": [str], "kl?": [float], "lost?": [float], "same_first?": [bool], "map?": list}},
    "prefill_s?": {str: float},
    "cache_bytes?": {str: float},
    "first_call_s?": {str: float},
}
"""An entry of a journal: `indices` of the questions that were answered, by cell columns of what was found, one value
for each of them, and what is wrong with the other questions of the batch, by number."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """A call: ask cells about a batch of the worker's own questions. See `ModelWorker.answer`."""

    indices: Sequence[int]
    cells: Sequence[str]
    beside_vanilla: bool = False
    timed: bool = False
    probe: Probe | None = None
    then: Sequence[Sequence[int]] = ()

    def __call__(self, worker: ModelWorker) -> dict[str, Any]:
        """Have a worker do it."""
        return worker.answer(
            worker.questions,
            self.indices,
            self.cells,
            max_new_tokens=worker.max_new_tokens,
            beside_vanilla=self.beside_vanilla,
            timed=self.timed,
            probe=self.probe,
            then=self.then,
        )


class Answers:
    """What is known so far.

    Args:
      cells: names of those that are of interest.
      journal: entries of `SHAPE` are taken from it, and added to it; others are passed over.
      total: numbers of questions from there on are not of interest.

    Attributes:
      known: what was found, by cell and question.
      errors: of questions that cannot be asked.

    Raises:
      OtherRunError: an entry has columns of different length.
    """

    def __init__(self, cells: Sequence[str], journal: Journal, total: int):
        self.known: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in cells}
        self.errors: dict[int, str] = {}
        self.journal, self._total = journal, total
        for line, entry in enumerate(journal.entries, 2):
            if "indices" in entry:
                self._take(entry, line)

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry down."""
        self.journal.add(entry)
        self._take(entry, len(self.journal.entries) + 1)

    def _take(self, entry: Mapping[str, Any], line: int) -> None:
        indices = entry["indices"]
        self.errors |= {int(index): error for index, error in entry["errors"].items() if int(index) < self._total}
        for name, columns in entry["found"].items():
            if any(len(values) != len(indices) for values in columns.values()):
                problem = f"{name} has not one value for each of {len(indices)} questions"
                raise OtherRunError(f"{self.journal.path} is damaged in line {line}: {problem}")
            if name in self.known:
                rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
                own = zip(indices, rows, strict=True)
                self.known[name] |= {index: row for index, row in own if index < self._total}

    def missing(self, indices: Sequence[int], mapped: Collection[int] = ()) -> list[str]:
        """The cells that have not been asked yet about all of these questions, or have no maps of those `mapped`."""
        wanted = set(indices) - self.errors.keys()
        shown = wanted.intersection(mapped)
        return [
            name
            for name, found in self.known.items()
            if not found.keys() >= wanted or any(found[index].get("map") is None for index in shown)
        ]

    @property
    def count(self) -> int:
        """How many answers there are."""
        return sum(map(len, self.known.values()))

    @property
    def asked(self) -> list[int]:
        """Questions that all cells have answered, in order."""
        return sorted(set.intersection(*map(set, self.known.values())))

    def column(self, name: str, column: str = "prediction") -> list[Any]:
        """What was found of a cell, for each of `asked`."""
        return [self.known[name][index][column] for index in self.asked]

    def agreement(self, name: str) -> float | None:
        """The share of a cell's answers that are vanilla's; None where nothing was answered."""
        pairs = list(zip(self.column(name), self.column(BASELINE), strict=True))
        return sum(own == vanilla for own, vanilla in pairs) / len(pairs) if pairs else None

    def scores(self, questions: QuestionSet, name: str) -> list[bool | None]:
        """Whether a cell answered each of `asked` rightly; None where nobody knows."""
        return [questions.score(index, text) for index, text in zip(self.asked, self.column(name), strict=True)]

    def scored(self, questions: QuestionSet) -> tuple[dict[str, list[bool]], list[dict[str, Any]]]:
        """Of the questions whose answers are known, by cell whether it is right; and their records."""
        marks = {name: self.scores(questions, name) for name in self.known}
        rows = [row for row, mark in enumerate(marks[BASELINE]) if mark is not None]
        right = {name: [bool(own[row]) for row in rows] for name, own in marks.items()}
        return right, [questions.record(self.asked[row]) for row in rows]

    def records(self, questions: QuestionSet) -> list[dict[str, Any]]:
        """Records of `asked`, with what all cells answered."""
        return [questions.record(index) | self.predictions(index) for index in self.asked]

    def predictions(self, index: int) -> dict[str, Any]:
        """What all cells answered to a question."""
        return {"predictions": {name: found[index]["prediction"] for name, found in self.known.items()}}
