"""Which question sets there are: `--questions` names a row of `QUESTION_SETS`, or a file by its ending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.data.file_questions import QuestionFile
from experiments.data.questions import QuestionSource
from experiments.data.scene_questions import SceneQuestions
from models.errors import CommandError

SCENES = "scenes"
_SCENES = 300

Make = Callable[[str, Path | None, int | None, int], QuestionSource]
"""Makes a source from what `--questions`, `--images`, `--limit` and `--seed` say."""


def _file(name: str, images: Path | None, limit: int | None, seed: int) -> QuestionSource:
    del seed  # of methods alone
    return QuestionFile(Path(name), images, limit)


QUESTION_SETS: dict[str, Make] = {
    SCENES: lambda name, images, limit, seed: SceneQuestions(limit or _SCENES, seed),
    ".jsonl": _file,
    ".json": _file,
    ".tsv": _file,
}


def source(name: str, *, images: Path | None, limit: int | None, seed: int) -> QuestionSource:
    """What a row's name, or a path with such an ending, stands for; see `Make`. CommandError where there is no row."""
    make = QUESTION_SETS.get(name) or QUESTION_SETS.get(Path(name).suffix)
    if make is None:
        endings = ", ".join(key for key in QUESTION_SETS if key.startswith("."))
        raise CommandError(f"{name}: a question file ends in {endings}")
    return make(name, images, limit, seed)
