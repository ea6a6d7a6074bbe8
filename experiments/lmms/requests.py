"""What a harness asks, apart from the harness: requests with keys that stay, and their batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image

from experiments.core.config import PromptConfig
from experiments.data import question_images
from experiments.data.formats import SHORT
from experiments.data.questions import QuestionSet, Sample, alike
from models.errors import CommandError, one_line

DEFAULT_UNTIL = ("\n\n",)
"""What lmms-eval says where a task says nothing. It would cut long answers, and no task asks for it."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One question, or one answer to be weighed.

    Attributes:
      task: its name.
      split: of the task's data.
      doc_id: the row of the split.
      text: what is asked.
      look: gives its images; called when it is asked, and not before.
      max_new_tokens: of the answer.
      until: texts that end the answer, and are not part of it.
      continuation: the answer to be weighed; None where one is to be generated.
    """

    task: str
    split: str
    doc_id: int
    text: str
    look: Callable[[], Sequence[Any]]
    max_new_tokens: int = SHORT
    until: tuple[str, ...] = ()
    continuation: str | None = None

    @property
    def key(self) -> str:
        """What tells it from others, in later runs too."""
        asked = json.dumps([self.text, self.max_new_tokens, self.continuation])
        return f"{self.task}/{self.split}/{self.doc_id}/{hashlib.sha256(asked.encode()).hexdigest()[:12]}"

    def ended(self, prediction: str) -> str:
        """An answer up to where the task wants it to end."""
        ends = [at for at in map(prediction.find, self.until) if at >= 0]
        return prediction[: min(ends)].strip() if ends else prediction

    def read(self, number: int) -> Sample:
        """What is asked, with its images.

        Raises:
          CommandError: its images cannot be read, or are not images.
        """
        try:
            seen = [image for image in self.look() or () if image is not None]
        except Exception as error:  # the task's code may raise anything, for one damaged image of many
            raise CommandError(f"its images cannot be read ({type(error).__name__}: {one_line(error)})") from error
        if other := [type(image).__name__ for image in seen if not isinstance(image, Image.Image)]:
            raise CommandError(f"it shows {', '.join(other)}, and images alone can be seen")
        images = tuple(question_images.checked(image, f"of {self.key}").convert("RGB") for image in seen)
        return Sample(self.key, self.text, images, None, number)


def options(given: Mapping[str, Any], *, max_new_tokens: int | None = None) -> dict[str, Any]:
    """What matters here of a task's `generation_kwargs`. Decoding is always greedy.

    Args:
      given: with any keys; unknown ones are ignored, and all are left as they are.
      max_new_tokens: where the task has none; None is LLaVA's.

    >>> options({"until": ["\\n\\n"], "temperature": 0, "image_aspect_ratio": "original"})
    {'max_new_tokens': 128, 'until': ()}
    """
    until = given.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    tokens = given.get("max_new_tokens") or max_new_tokens or SHORT
    return {"max_new_tokens": int(tokens), "until": () if until == DEFAULT_UNTIL else until}


@dataclasses.dataclass(frozen=True)
class Requests(QuestionSet):
    """Requests that were read before they are handed to a worker.

    Without any it is the `QuestionSource` of a worker: what a harness asks shows as it goes.

    Attributes:
      found: by number a sample, or what is wrong with it.
    """

    prompt: ClassVar[PromptConfig] = PromptConfig()
    least_images: ClassVar[int] = 0
    title: ClassVar[str] = "lmms-eval"
    max_new_tokens = SHORT

    found: Mapping[int, Sample | str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, requests: Sequence[Request], numbers: Sequence[int]) -> Requests:
        """Some of many requests, by their numbers."""
        found = dict[int, Sample | str]()
        for number in numbers:
            try:
                found[number] = requests[number].read(number)
            except CommandError as error:
                found[number] = str(error)
        return cls(found)

    def load(self) -> Requests:
        """See `QuestionSource`."""
        return self

    def __len__(self) -> int:
        return len(self.found)

    def sample(self, index: int) -> Sample:
        """See `QuestionSet`."""
        found = self.found[index]
        if isinstance(found, str):
            raise CommandError(found)
        return found

    def identity(self) -> Mapping[str, Any]:
        """Nothing: every answer is kept by the key of its request."""
        return {}


def batches(requests: Sequence[Request], size: int) -> Iterator[list[int]]:
    """Numbers of requests that are asked together: of one task, split and way to answer, and of similar length.

    A request that is there several times, such as a harness pads with, is asked once.
    """
    groups = dict[tuple[Any, ...], dict[int, int]]()
    first = {request.key: number for number, request in reversed(list(enumerate(requests)))}
    for number in sorted(first.values()):
        request = requests[number]
        way = (request.task, request.split, request.max_new_tokens, request.until, request.continuation is None)
        groups.setdefault(way, {})[number] = len(request.text)
    for lengths in groups.values():
        yield from alike(lengths, size)
