"""What a harness asks, apart from the harness: requests with keys that stay, and their batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from experiments.data import question_images as images
from experiments.data.formats import SHORT
from experiments.data.questions import Sample, alike
from models.errors import CommandError, one_line

DEFAULT_UNTIL = ("\n\n",)
"""What lmms-eval says where a task says nothing: no task's own wish, and it would cut long answers."""


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
      until: texts that end the answer, and are no part of it.
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

    def ended(self, said: str) -> str:
        """An answer up to where the task wants it to end."""
        ends = [at for at in map(said.find, self.until) if at >= 0]
        return said[: min(ends)].strip() if ends else said


def options(given: Mapping[str, Any], *, max_new_tokens: int | None = None) -> dict[str, Any]:
    """Of a task's `generation_kwargs`, which are left as they are, what matters here. Decoding is always greedy.

    Args:
      given: with any keys; those that nothing is known of are passed over.
      max_new_tokens: where the task has none; None is LLaVA's.

    >>> options({"until": ["\\n\\n"], "temperature": 0, "image_aspect_ratio": "original"})
    {'max_new_tokens': 128, 'until': ()}
    """
    until = given.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    tokens = given.get("max_new_tokens") or max_new_tokens or SHORT
    return {"max_new_tokens": int(tokens), "until": () if until == DEFAULT_UNTIL else until}


def read(request: Request, number: int) -> Sample:
    """What is asked, with its images.

    Raises:
      CommandError: it has no images where it should, or what it has are none.
    """
    try:
        seen = request.look()
    except Exception as error:  # the task's code may raise anything, for one damaged image of many
        raise CommandError(f"its images cannot be read ({type(error).__name__}: {one_line(error)})") from error
    seen = [image for image in seen or () if image is not None]
    if other := [type(image).__name__ for image in seen if not isinstance(image, Image.Image)]:
        raise CommandError(f"it shows {', '.join(other)}, and images alone can be seen")
    pictures = tuple(images.checked(image, f"of {request.key}").convert("RGB") for image in seen)
    return Sample(request.key, request.text, pictures, None, number)


class Read:
    """Questions that were read before they are handed to a worker: samples, and what is wrong with others."""

    def __init__(self, found: Mapping[int, Sample | str]):
        self._found = found

    @classmethod
    def of(cls, requests: Sequence[Request], numbers: Sequence[int]) -> Read:
        """Some of many requests, by their numbers."""
        found = dict[int, Sample | str]()
        for number in numbers:
            try:
                found[number] = read(requests[number], number)
            except CommandError as error:
                found[number] = str(error)
        return cls(found)

    def sample(self, index: int) -> Sample:
        """See `experiments.data.questions.Readable`."""
        found = self._found[index]
        if isinstance(found, str):
            raise CommandError(found)
        return found


def batches(requests: Sequence[Request], size: int) -> Iterator[list[int]]:
    """Numbers of requests that are asked together: of one task, split and way to answer, and of similar length.

    A request that is there several times, such as a harness pads with, is asked once.
    """
    groups = dict[tuple[Any, ...], dict[int, int]]()
    seen = set[str]()
    for number, request in enumerate(requests):
        if request.key not in seen:
            seen.add(request.key)
            way = (request.task, request.split, request.max_new_tokens, request.until, request.continuation is None)
            groups.setdefault(way, {})[number] = len(request.text)
    for lengths in groups.values():
        yield from alike(lengths, size)
