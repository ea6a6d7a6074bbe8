"""What an evaluation asks: a set of questions by number, wherever they come from, and their batches.

Two kinds: `experiments.data.scene_questions` draws scenes, `experiments.data.file_questions` reads the
files that LLaVA's own evaluation reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
      id: what its source calls it; need not be unique.
      text: what is asked, without placeholders for images.
      images: what it is about, PIL or uint8 [height, width, 3]; may be empty.
      answer: the right one, or None where it is not known.
      group: samples of one group are not independent: they are about one scene.
      family: which kind of question, or "".
    """

    id: str | int
    text: str
    images: tuple[Any, ...]
    answer: str | None
    group: int
    family: str = ""


class Readable(Protocol):
    """Questions by number."""

    def sample(self, index: int) -> Sample:
        """Question number `index`, from 0 on, its images read.

        Raises:
          CommandError: it cannot be asked, such as for a damaged image; the others can.
        """
        ...


class QuestionSet(Readable, Protocol):
    """Questions by number, the same ones in every process that makes the set anew."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """How long an answer may be, unless somebody knows better."""
        ...

    def right(self, index: int, said: str) -> bool | None:
        """Whether that answers question number `index`; None where the answer is not known."""
        ...

    def batches(self, size: int) -> Sequence[Sequence[int]]:
        """The numbers of all questions that can be asked, `size` at a time or fewer."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What tells this set from others, as JSON types."""
        ...


def alike(lengths: Mapping[int, int], size: int) -> list[list[int]]:
    """Questions in batches of similar length, in which a batch is as long as its longest prompt.

    Args:
      lengths: of their texts, by number.
      size: of a batch, the last of which may have fewer.

    >>> alike({0: 9, 1: 3, 2: 9, 3: 1}, 2)
    [[3, 1], [0, 2]]
    """
    order = sorted(lengths, key=lambda index: (lengths[index], index))
    return [order[at : at + size] for at in range(0, len(order), size)]


def batches(total: int, size: int) -> Iterator[range]:
    """0..total in runs of `size`."""
    return (range(start, min(start + size, total)) for start in range(0, total, size))
