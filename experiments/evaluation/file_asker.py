"""The worker of an evaluation on a question file: holds the model and asks it, row by row safe from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import methods, results, schedules
from experiments.cli import CommandError, one_line
from experiments.evaluation.encoder import Encoder
from experiments.evaluation.file_questions import questions_of
from experiments.evaluation.questions import Sample
from experiments.evaluation.settings import Settings
from experiments.memory import check_request
from models.engine.plan import Carve, Schedule, parse
from tokencarve_jax import plan


class FileAsker:
    """Loads the checkpoint once and is asked for one batch after the other.

    Args:
      settings: of the evaluation, with `files`.

    Attributes:
      methods: what to compare, by name, as `carve` arguments.

    Raises:
      CommandError: the file cannot be read, or the model not be carved like that, or its images not be brought to a
        square like that.
      Whatever `experiments.loading.load` raises.
    """

    def __init__(self, settings: Settings):
        assert settings.files is not None
        self._settings, self._files = settings, settings.files
        self._questions = questions_of(self._files)
        self._checkpoint = settings.load()
        self._llava = self._checkpoint.llava
        self._encoder = Encoder(self._checkpoint, conversation=self._files.conversation, border=self._files.border)
        keep, every = settings.keep, self._llava.config.tokens_per_image
        if self._llava.square:  # the same count for all images, however much of them is border
            try:
                keep = plan(every, keep).kept
            except ValueError as error:
                raise CommandError(f"keep={keep}: {error}") from error
        given = schedules.by_text(settings.schedules)
        self.methods = methods.to_compare(self._llava, keep, settings.methods, given, clip=self._checkpoint.clip)
        for carve in self.methods.values():
            self._encoder.check_cuts(self._cuts(carve))
        self._max_new_tokens = self._files.max_new_tokens or self._questions.max_new_tokens
        probe = self._encoder([Sample("", "What is this?", (np.zeros((8, 8, 3), np.uint8),), None, 0)], 1)
        check_request(self._llava, probe, self._max_new_tokens, times=settings.batch_size)

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        return {
            **self._checkpoint.identity,
            "methods": {name: methods.visual_tokens(self._llava, carve) for name, carve in self.methods.items()},
            "image_aspect_ratio": self._checkpoint.image_aspect_ratio,
            "versions": results.versions(),
            "code_sha256": results.code_checksum(),
            **self._questions.identity(),
        }

    def machine(self) -> dict[str, Any]:
        """What this worker runs on."""
        return results.machine()

    def ask(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Ask every method about rows of one batch.

        Returns:
          One record per row: `said` by method, or `error`.
        """
        samples, errors = self._encoder.readable(self._questions, indices)
        said = self._answer(samples, errors) if samples else {}
        return [
            {"sample": index} | ({"error": errors[index]} if index in errors else {"said": said[index]})
            for index in indices
        ]

    def _answer(self, samples: dict[int, Sample], errors: dict[int, str]) -> dict[int, dict[str, str]]:
        """What every method says to each sample. One that cannot be encoded goes to `errors`, its neighbours do not."""
        try:
            inputs = self._encoder(list(samples.values()), self._settings.batch_size)
            most = self._llava.prompt(**inputs.named).visual_slots.shape[1]
        except (CommandError, ValueError, TypeError) as error:
            if len(samples) == 1:
                errors |= dict.fromkeys(samples, f"{type(error).__name__}: {one_line(error)}")
                return {}
            alone = [self._answer({index: sample}, errors) for index, sample in samples.items()]
            return {index: said for one in alone for index, said in one.items()}
        said = {index: dict[str, str]() for index in samples}
        for name, carve in self.methods.items():
            tokens = self._llava.generate(
                **inputs.named,
                max_new_tokens=self._max_new_tokens,
                carve=self._at_most(carve, most),
                seed=(self._settings.seed * 1_000_003 + next(iter(samples))) % 2**32,  # whoever asks it
            )
            for index, text in zip(samples, self._checkpoint.decode(tokens), strict=False):
                said[index][name] = text
        return said

    def _at_most(self, carve: Carve, most: int) -> Carve:
        """Without its border, a thin strip of an image has fewer tokens than a cut keeps: then it keeps them all."""
        if self._files.border != "drop" or carve is None:
            return carve
        return tuple(
            dataclasses.replace(cut, keep=min(cut.keep, most)) if isinstance(cut.keep, int) and most else cut
            for cut in self._cuts(carve)
        )

    def _cuts(self, carve: Carve) -> Schedule:
        return parse(carve, num_layers=self._llava.config.text.num_layers)
