"""A conversation about images or a video: every answer by the whole of what was said before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.core import loading
from experiments.core.memory import check_request
from models.engine.plan import Carve
from models.engine.prompt import BUCKET

_LATER_BUCKET = 8 * BUCKET  # of a conversation's later prompts, which grow: it would compile at almost every question


class Conversation:
    """Turns so far, and the images and videos that stand before the first of them.

    Args:
      checkpoint: model and processor.
      images: what the conversation is about, PIL or uint8 [height, width, 3].
      videos: the same, `experiments.data.videos.Clip`.
      carve: as a model's `generate` takes it; each answer starts from all visual tokens again.
      max_new_tokens: the longest answer.
    """

    def __init__(
        self,
        checkpoint: loading.Checkpoint,
        images: Sequence[Any],
        *,
        videos: Sequence[Any] = (),
        carve: Carve,
        max_new_tokens: int,
    ):
        self._checkpoint, self._images, self._videos = checkpoint, list(images), list(videos)
        self._carve, self._max_new_tokens = carve, max_new_tokens
        self.turns: list[dict[str, Any]] = []

    def ask(self, question: str) -> Iterator[str]:
        """Ask, and give the answer in pieces as they come. The turn counts once the last piece is taken.

        Raises:
          CommandError: the question cannot be asked; the conversation can go on.
          ValueError: `carve` asks for more visual tokens than there are.
        """
        checkpoint = self._checkpoint
        media = {} if self.turns else {"images": len(self._images), "videos": len(self._videos)}
        turns = [*self.turns, loading.user(question, **media)]
        inputs = checkpoint.encode_turns([self._images], [turns], videos=self._videos)
        check_request(checkpoint.llava, inputs, self._max_new_tokens)
        bucket = _LATER_BUCKET if self.turns else BUCKET
        stream = checkpoint.llava.stream(
            **inputs.named, chunk=1, carve=self._carve, max_new_tokens=self._max_new_tokens, bucket=bucket
        )
        tokens, printed = np.zeros((1, 0), np.int32), ""
        for new in stream:
            tokens = np.concatenate([tokens, np.asarray(new)], axis=1)
            (text,) = checkpoint.decode(tokens)
            # What the next token may still change waits, such as half a character.
            if text.startswith(printed) and not text.endswith("\ufffd"):
                yield text[len(printed) :]
                printed = text
        (text,) = checkpoint.decode(tokens)
        if text.startswith(printed):
            yield text[len(printed) :]
        self.turns = [*turns, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
