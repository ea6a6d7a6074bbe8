"""The worker of an evaluation on a question file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.evaluation.file_questions import questions_of
from experiments.evaluation.question_asker import QuestionAsker
from experiments.evaluation.settings import Settings


class FileAsker(QuestionAsker):
    """Holds the model and the file's questions.

    Args:
      settings: of the evaluation, with `files`.

    Raises:
      CommandError: the file cannot be read; or see `QuestionAsker`.
      Whatever `experiments.loading.load` raises.
    """

    def __init__(self, settings: Settings):
        assert settings.files is not None
        self._questions = questions_of(settings.files)
        self._longest = settings.files.max_new_tokens or self._questions.max_new_tokens
        super().__init__(settings, settings.files, max_new_tokens=self._longest)

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        return {**super().identity(), **self._questions.identity()}

    def ask(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Ask every method about rows of one batch.

        Returns:
          One record per row: `said` by method, or `error`.
        """
        return self.answer(self._questions, indices, max_new_tokens=self._longest)
