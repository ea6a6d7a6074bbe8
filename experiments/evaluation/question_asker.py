"""What lmms-eval's adapter asks with, until it asks `ModelWorker` itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from experiments.core import methods, results, schedules
from experiments.core.config import ModelConfig, PromptConfig
from experiments.data.formats import SHORT
from experiments.data.questions import QuestionSet, Readable, Sample
from experiments.evaluation.cells import AtOneBudget
from experiments.evaluation.settings import Settings
from experiments.evaluation.worker import ModelWorker, WorkerConfig


class _Given(QuestionSet):
    """No questions: they come with each call."""

    max_new_tokens = SHORT

    def __len__(self) -> int:
        return 0

    def sample(self, index: int) -> Sample:
        """There is none."""
        raise IndexError(index)

    def identity(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}


@dataclasses.dataclass(frozen=True)
class _Source:
    prompt: ClassVar[PromptConfig] = PromptConfig()
    least_images: ClassVar[int] = 0
    title: ClassVar[str] = "given"

    def load(self) -> QuestionSet:
        """See `QuestionSource`."""
        return _Given()


class QuestionAsker:
    """Asks what comes with each call.

    Args:
      settings: model, methods and batch size.
      asking: how questions are put.
      max_new_tokens: of the longest answer that is likely to be asked for.
    """

    def __init__(self, settings: Settings, asking: PromptConfig, *, max_new_tokens: int):
        model = ModelConfig(source=settings.model, revision=settings.revision, dtype=settings.dtype)
        own = schedules.by_text(settings.schedules)
        compared = [(method, settings.keep) for method in methods.named(settings.methods, taken=own)]
        self._worker = ModelWorker(
            WorkerConfig(
                model=model,
                prompt=dataclasses.replace(asking, max_new_tokens=max_new_tokens),
                questions=_Source(),
                comparison=AtOneBudget(tuple(compared), tuple(own.items())),
                batch_size=settings.batch_size,
                seed=settings.seed,
            )
        )

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        facts, cells = self._worker.identity(), self._worker.cells
        left = {name: (cell.tokens, cell.average) for name, cell in cells.items()}
        del facts["max_new_tokens"], facts["decode_capacity"]
        return facts | {"methods": left}

    def machine(self) -> dict[str, Any]:
        """What this worker runs on."""
        return results.machine()

    def answer(
        self, questions: Readable, indices: Sequence[int], *, max_new_tokens: int, only: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """One record per question: `said` by method, or `error`."""
        names = [name for name in self._worker.cells if only is None or name in only]
        entry = self._worker.answer(questions, indices, names, max_new_tokens=max_new_tokens)
        return self._records(entry, indices)

    def loglikelihoods(
        self, questions: Readable, indices: Sequence[int], *, continuations: Sequence[str], only: Collection[str] | None
    ) -> list[dict[str, Any]]:
        """One record per question: `said` by method, loss and whether it is greedy, or `error`."""
        names = [name for name in self._worker.cells if only is None or name in only]
        entry = self._worker.loglikelihoods(questions, indices, names, continuations=continuations)
        return self._records(entry, indices)

    @staticmethod
    def _records(entry: Mapping[str, Any], indices: Sequence[int]) -> list[dict[str, Any]]:
        found = {
            index: {name: columns["prediction"][row] for name, columns in entry["found"].items()}
            for row, index in enumerate(entry["indices"])
        }
        errors = entry["errors"]
        return [
            {"sample": index} | ({"said": found[index]} if index in found else {"error": errors[str(index)]})
            for index in indices
        ]
