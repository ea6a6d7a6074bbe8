"""The worker of an evaluation on a question file."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.core.loading import load_without_weights
from experiments.data.ahead import Ahead
from experiments.data.encoder import Encoder, Ready
from experiments.data.file_questions import questions_of
from experiments.evaluation.question_asker import QuestionAsker
from experiments.evaluation.settings import Files, Settings


class FileAsker(QuestionAsker):
    """Holds the model and the file's questions.

    Args:
      settings: of the evaluation, with `files`.

    Raises:
      CommandError: the file cannot be read; or see `QuestionAsker`.
      Whatever `experiments.core.loading.load` raises.
    """

    def __init__(self, settings: Settings):
        assert settings.files is not None
        self._questions = questions_of(settings.files)
        self._longest = settings.files.max_new_tokens or self._questions.max_new_tokens
        super().__init__(settings, settings.files, max_new_tokens=self._longest)
        builder = functools.partial(_packer, self._checkpoint.folder, settings.files, settings.batch_size)
        self._ahead = Ahead(functools.partial(self._ready, self._questions), builder)
        self._may = settings.clip is None  # which sees the questions on the accelerator

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        return {**super().identity(), **self._questions.identity()}

    def ask(self, indices: Sequence[int], then: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
        """Ask every method about rows of one batch.

        Args:
          indices: of the rows.
          then: those of the batches that are likely to be asked for next.

        Returns:
          `samples`, one record per row, `said` by method or `error`; and `seconds` by what they were spent on.
        """
        before, start = dict(self.spent), time.perf_counter()
        ready = self._ahead.get(tuple(indices), [tuple(one) for one in then] if self._may else ())
        waited = time.perf_counter() - start
        samples = self._answer(ready, indices, self._longest)
        seconds = {what: spent - before[what] for what, spent in self.spent.items()}
        return {"samples": samples, "seconds": {"waiting for input": waited, **seconds}}


def _packer(folder: Path, files: Files, batch_size: int) -> Callable[[Sequence[int]], Ready]:
    """What `FileAsker` does before the model is needed, in a process without one."""
    checkpoint = load_without_weights(folder, image_aspect_ratio=files.image_aspect_ratio)
    encoder = Encoder(checkpoint, conversation=files.conversation, border=files.border)
    questions = questions_of(files)
    return lambda indices: encoder.ready(questions, indices, batch_size)
