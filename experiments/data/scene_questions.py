"""Questions about scenes that are drawn on the spot, as many as wanted."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from experiments.data.questions import Sample, batches
from experiments.data.scenes import FAMILIES, Scene, make_scene


@functools.lru_cache(maxsize=64)
def _scene(index: int, seed: int) -> Scene:
    return make_scene("test", index, seed, questions=len(FAMILIES))


class SceneQuestions:
    """A `QuestionSet`: held-out scenes, about each of which one question per family follows the other.

    Args:
      scenes: how many.
      seed: of the scenes.
    """

    max_new_tokens = 8

    def __init__(self, scenes: int, seed: int):
        self._scenes, self._seed = scenes, seed

    def __len__(self) -> int:
        return self._scenes * len(FAMILIES)

    def sample(self, index: int) -> Sample:
        """Question number `index`; its id is that number, its group the scene's."""
        number = index // len(FAMILIES)
        scene = _scene(number, self._seed)
        question = scene.questions[index % len(FAMILIES)]
        return Sample(index, question.text, (scene.image,), question.answer, number, question.family)

    def right(self, index: int, said: str) -> bool:
        """Whether it is the answer to the letter."""
        return said == self.sample(index).answer

    def batches(self, size: int) -> list[range]:
        """In order."""
        return list(batches(len(self), size))

    def identity(self) -> Mapping[str, Any]:
        """The seed: more scenes go on where fewer ended."""
        return {"seed": self._seed}
