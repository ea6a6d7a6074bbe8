"""What a comparison is told to do."""

from __future__ import annotations

import dataclasses

from experiments.data.file_questions import questions_of
from experiments.data.questions import QuestionSet
from experiments.data.scene_questions import SceneQuestions
from experiments.evaluation.settings import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """One comparison.

    Attributes:
      keeps: budgets, each a fraction or count of the visual tokens that are left.
      rounds: in which all are timed by turns.
    """

    keeps: tuple[float | int, ...]
    rounds: int

    def questions(self) -> QuestionSet:
        """What is asked."""
        return SceneQuestions(self.scenes, self.seed) if self.files is None else questions_of(self.files)
