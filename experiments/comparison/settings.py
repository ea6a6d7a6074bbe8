"""What a comparison is told to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.evaluation.file_questions import questions_of
from experiments.evaluation.questions import QuestionSet
from experiments.evaluation.scene_questions import SceneQuestions
from experiments.evaluation.settings import Files


@dataclasses.dataclass(frozen=True)
class Settings:
    """One comparison.

    Attributes:
      model: folder of a checkpoint, or a model id on the hub.
      keeps: budgets, each a fraction or count of the visual tokens that are left.
      methods: what to compare, by name.
      out: folder that everything is written to.
      scenes: how many; each is asked about once per family of questions.
      batch_size: questions at a time.
      rounds: in which all are timed by turns.
      seed: of the scenes and of random methods.
      dtype: of weights and hidden states.
      revision: of the model on the hub.
      clip: what tells relevance to the question, as `model`; None for nothing.
      clip_revision: of that on the hub.
      schedules: cuts as their texts, see `experiments.schedules`: each schedule is one more row.
      restart: forget what `out` holds of an earlier run.
      workers: how many share the questions.
      ray_address: of a Ray cluster; None stays on this machine.
      files: questions of a file in place of the scenes.
    """

    model: str
    keeps: tuple[float | int, ...]
    methods: tuple[str, ...]
    out: Path
    scenes: int
    batch_size: int
    rounds: int
    seed: int = 0
    dtype: str = "float32"
    revision: str | None = None
    clip: str | None = None
    clip_revision: str | None = None
    schedules: tuple[tuple[str, ...], ...] = ()
    restart: bool = False
    workers: int = 1
    ray_address: str | None = None
    files: Files | None = None

    def questions(self) -> QuestionSet:
        """What is asked."""
        return SceneQuestions(self.scenes, self.seed) if self.files is None else questions_of(self.files)
