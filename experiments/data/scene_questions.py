"""Questions about scenes that are drawn on the spot, as many as wanted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from experiments.core.config import CHECKPOINT, PromptConfig
from experiments.data.questions import QuestionSet, Sample
from experiments.data.scenes import FAMILIES, Scene, make_scene


@functools.lru_cache(maxsize=64)
def _scene(index: int, seed: int) -> Scene:
    return make_scene("test", index, seed, questions=len(FAMILIES))


@dataclasses.dataclass(frozen=True)
class SceneQuestions(QuestionSet):
    """Held-out scenes, about each of which one question per family follows the other; its own `QuestionSource`.

    Attributes:
      scenes: how many.
      seed: of the scenes.
    """

    prompt: ClassVar[PromptConfig] = CHECKPOINT
    least_images: ClassVar[int] = 1
    max_new_tokens = 8

    scenes: int
    seed: int

    @property
    def title(self) -> str:
        """See `QuestionSource`."""
        return f"{self.scenes} held-out scenes"

    def load(self) -> Self:
        """The questions are drawn when they are asked for."""
        return self

    def __len__(self) -> int:
        return self.scenes * len(FAMILIES)

    def sample(self, index: int) -> Sample:
        """Question number `index`; its id is that number, its group the scene's."""
        number = index // len(FAMILIES)
        scene = _scene(number, self.seed)
        question = scene.questions[index % len(FAMILIES)]
        return Sample(index, question.text, (scene.image,), question.answer, number, question.family)

    @functools.cache  # noqa: B019 - a set lives as long as the process, and equal ones share what they drew
    def record(self, index: int) -> dict[str, Any]:
        """See `QuestionSet`; a scene is drawn once for it."""
        return super().record(index)

    def identity(self) -> Mapping[str, Any]:
        """The seed: more scenes go on where fewer ended."""
        return {"seed": self.seed}
