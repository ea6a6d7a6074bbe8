"""Which questions a report shows with their images."""

from __future__ import annotations

from experiments.data.questions import QuestionSet
from models.errors import CommandError

DEFAULT = 12  # four of each family of questions about scenes
_LOOKED_AT = 10  # times as many are read at most


def choose(questions: QuestionSet, count: int) -> list[int]:
    """Numbers of `count` questions, each about one image, of as many images as there are; fewer where there are fewer.

    Scenes are asked about three times, and each scene begins with another family: their first questions come first.
    """
    first, further, groups = list[int](), list[int](), set[int]()
    for index in range(min(len(questions), _LOOKED_AT * count)):
        if len(first) == count:
            break
        try:
            sample = questions.sample(index)
        except CommandError:  # it cannot be read; the run says so itself
            continue
        if len(sample.images) == 1:
            (further if sample.group in groups else first).append(index)
            groups.add(sample.group)
    return [*first, *further][:count]
