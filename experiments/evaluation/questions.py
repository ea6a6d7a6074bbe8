"""The questions of an evaluation by number, and their batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from experiments.scenes import FAMILIES, Question, Scene, make_scene


@functools.lru_cache(maxsize=64)
def _scene(index: int, seed: int) -> Scene:
    return make_scene("test", index, seed, questions=len(FAMILIES))


def scene_of(index: int) -> int:
    """The number of the scene that question number `index` is about."""
    return index // len(FAMILIES)


def sample(index: int, seed: int) -> tuple[Scene, Question]:
    """Question number `index`: one per family follow each other about one scene."""
    scene = _scene(scene_of(index), seed)
    return scene, scene.questions[index % len(FAMILIES)]


def batches(total: int, size: int) -> Iterator[range]:
    """0..total in runs of `size`."""
    return (range(start, min(start + size, total)) for start in range(0, total, size))
