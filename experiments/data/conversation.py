"""A conversation about images through a checkpoint's own chat template, its answers streaming."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.core.loading import Checkpoint
from experiments.core.memory import check_request
from models.engine.plan import Carve


def questions(lines: Iterable[str]) -> Iterator[str]:
    """What is asked, line by line, until "exit" or the end; blank lines do not count. Terminals get a prompt."""
    stream, show = iter(lines), getattr(lines, "isatty", lambda: False)()
    while True:
        if show:
            print("> ", end="", file=sys.stderr, flush=True)
        line = next(stream, None)
        if line is None or line.strip().lower() == "exit":
            return
        if line.strip():
            yield line.strip()


class Conversation:
    """Turns so far, and the images that stand before the first of them.

    Args:
      checkpoint: model and processor.
      images: what the conversation is about, PIL or uint8 [height, width, 3].
      carve: as a model's `generate` takes it; each answer starts from all visual tokens again.
      max_new_tokens: the longest answer.
    """

    def __init__(self, checkpoint: Checkpoint, images: Sequence[Any], *, carve: Carve, max_new_tokens: int):
        self._checkpoint = checkpoint
        self._images = list(images)
        self._options: dict[str, Any] = {"carve": carve, "max_new_tokens": max_new_tokens}
        self.turns: list[dict[str, Any]] = []

    def ask(self, question: str) -> Iterator[str]:
        """Ask, and give the answer in pieces as they come. The turn counts once the last piece is taken.

        Raises:
          ValueError: `carve` asks for more visual tokens than there are.
        """
        content = [{"type": "text", "text": question}]
        if not self.turns:
            content = [*[{"type": "image"}] * len(self._images), *content]
        turns = [*self.turns, {"role": "user", "content": content}]
        inputs = self._checkpoint.encode_turns([self._images], [turns])
        check_request(self._checkpoint.llava, inputs, self._options["max_new_tokens"])
        stream = self._checkpoint.llava.stream(**inputs.named, chunk=1, **self._options)
        tokens, said = np.zeros((1, 0), np.int32), ""
        for new in stream:
            tokens = np.concatenate([tokens, np.asarray(new)], axis=1)
            (text,) = self._checkpoint.decode(tokens)
            # What the next token may still change waits, such as half a character.
            if text.startswith(said) and not text.endswith("\ufffd"):
                yield text[len(said) :]
                said = text
        (text,) = self._checkpoint.decode(tokens)
        if text.startswith(said):
            yield text[len(said) :]
        self.turns = [*turns, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
