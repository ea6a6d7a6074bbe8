"""What an evaluation asks: a set of questions by number, wherever they come from, and their batches.

`experiments.data.registry` has a row for each kind of set. A new one is a `QuestionSource` with its `QuestionSet`, in
one file, and a row.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from experiments.core.config import PromptConfig


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question."""

    id: str | int  # what its source calls it; need not be unique
    text: str  # what is asked, without placeholders for images
    images: tuple[Any, ...]  # what it is about, PIL or uint8 [height, width, 3]; may be empty
    answer: str | None  # the right one, where it is known
    group: int  # samples of one group are about one scene, and not independent
    family: str = ""  # which kind of question


class Readable(Protocol):
    """Questions by number."""

    def sample(self, index: int) -> Sample:
        """Question number `index`, from 0 on, its images read; CommandError where it alone cannot be asked."""


class QuestionSet(abc.ABC):
    """Questions by number, the same ones in every process that makes the set anew.

    Attributes:
      max_new_tokens: how long an answer may be, unless the user says so.
    """

    max_new_tokens: int

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def sample(self, index: int) -> Sample:
        """See `Readable`."""

    @abc.abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What tells this set from others, as JSON types."""

    def record(self, index: int) -> dict[str, Any]:
        """What results tell of question number `index`: `sample`, `id`, `scene`, `family`, `question`, `answer`."""
        sample = self.sample(index)
        fields = {"scene": sample.group, "family": sample.family, "question": sample.text, "answer": sample.answer}
        return {"sample": index, "id": sample.id, **fields}

    def place(self, index: int) -> dict[str, Any]:
        """Where question number `index` stands in its source, for records of what could and could not be asked."""
        return {"sample": index, "question_id": self.record(index)["id"]}

    def problem(self, index: int) -> str:
        """Why question number `index` is in no batch."""
        return f"question {index} is in no batch"

    def scorer_line(self, index: int, prediction: str) -> dict[str, Any]:
        """An answer as the benchmark's own scorer reads it."""
        record = self.record(index)
        return {"question_id": record["id"], "prompt": record["question"], "text": prediction}

    def score(self, index: int, prediction: str) -> bool | None:
        """Whether that answers question number `index`, here to the letter; None where the answer is not known."""
        answer = self.record(index)["answer"]
        return None if answer is None else prediction == answer

    def batches(self, size: int) -> Sequence[Sequence[int]]:
        """The numbers of all questions that can be asked, `size` at a time or fewer; here in order."""
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]


class QuestionSource(Protocol):
    """Describes a question set; an immutable value that can be pickled.

    Attributes:
      prompt: how the questions are put, unless the user says so.
      least_images: of each question.
    """

    prompt: ClassVar[PromptConfig]
    least_images: ClassVar[int]

    @property
    def title(self) -> str:
        """What tables call it."""

    def load(self) -> QuestionSet:
        """The questions; CommandError where there are none that can be read."""


def without(text: str, placeholder: str) -> str:
    """Text without a placeholder, also where taking one out makes another; in one pass, however many there are."""
    if placeholder not in text:
        return text
    left, end = list[str](), list(placeholder)
    for character in text:
        left.append(character)
        if character == end[-1] and left[-len(end) :] == end:
            del left[-len(end) :]
    return "".join(left)


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
