"""Asks a model about samples from anywhere, row by row safe from the others: files, and what a harness hands over."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from experiments.core import methods, results, schedules
from experiments.core.loading import Inputs
from experiments.core.memory import check_request
from experiments.data.encoder import Encoder, Ready
from experiments.data.questions import Readable, Sample
from experiments.evaluation.settings import Asking, Settings
from experiments.metrics import likelihood
from models.engine.plan import Carve, Schedule, parse
from models.errors import CommandError
from tokencarve_jax import plan

_PROBE = Sample("", "What is this?", (np.zeros((8, 8, 3), np.uint8),), None, 0)


class QuestionAsker:
    """Loads the checkpoint once and is asked for one batch after the other.

    Args:
      settings: model, methods and batch size.
      asking: how questions are put.
      max_new_tokens: of the longest answer that is likely to be asked for: its batch must fit into memory.

    Attributes:
      methods: what to compare, by name, as `carve` arguments.
      spent: seconds of the model by what it did: "compiling" (the first batch of each shape), "device".

    Raises:
      CommandError: the model cannot be carved like that, or its images not be brought to a square like that.
      Whatever `experiments.core.loading.load` raises.
    """

    def __init__(self, settings: Settings, asking: Asking, *, max_new_tokens: int):
        self._settings, self._asking = settings, asking
        self._checkpoint = settings.load(asking)
        self._llava = self._checkpoint.llava
        self._encoder = Encoder(self._checkpoint, conversation=asking.conversation, border=asking.border)
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
        self.spent, self._warm = {"compiling": 0.0, "device": 0.0}, set[str]()
        check_request(self._llava, self._encoder([_PROBE], 1), max_new_tokens, times=settings.batch_size)

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        return {
            **self._checkpoint.identity,
            **methods.identity(self._llava, self.methods),
            "image_aspect_ratio": self._checkpoint.image_aspect_ratio,
            "versions": results.versions(),
            "code_sha256": results.code_checksum(),
        }

    def machine(self) -> dict[str, Any]:
        """What this worker runs on."""
        return results.machine()

    def answer(
        self, questions: Readable, indices: Sequence[int], *, max_new_tokens: int, only: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """Ask about one batch.

        Args:
          questions: by number; not more than they are read here.
          indices: of those to ask, not more than a batch has.
          max_new_tokens: of an answer; fewer where the model's context ends before.
          only: names of the methods to ask; None is all.

        Returns:
          One record per question, in order: `said` by method, or `error`.
        """

        return self._answer(self._ready(questions, indices), indices, max_new_tokens, only)

    def _ready(self, questions: Readable, indices: Sequence[int]) -> Ready:
        return self._encoder.ready(questions, indices, self._settings.batch_size)

    def _answer(
        self, ready: Ready, indices: Sequence[int], max_new_tokens: int, only: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        def say(inputs: Inputs, indices: Sequence[int], carve: Carve) -> list[str]:
            left = self._llava.config.text.max_positions - inputs.input_ids.shape[1]
            new_tokens = max(1, min(max_new_tokens, left))
            tokens = self._llava.generate(
                **inputs.named, max_new_tokens=new_tokens, carve=carve, seed=self._seed(indices)
            )
            return self._checkpoint.decode(tokens)

        return self._each(ready, indices, only, say)

    def loglikelihoods(
        self, questions: Readable, indices: Sequence[int], *, continuations: Sequence[str], only: Collection[str] | None
    ) -> list[dict[str, Any]]:
        """How well one batch's given answers follow.

        Args:
          questions: as for `answer`.
          indices: as for `answer`.
          continuations: an answer for each of them.
          only: as for `answer`.

        Returns:
          One record per question, in order: `said` by method, the mean negative log probability of the answer's tokens
          with the end of the turn, and whether greedy decoding would have said it; or `error`.
        """
        tokenizer = self._checkpoint.processor.tokenizer
        answers = {
            index: tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
            for index, text in zip(indices, continuations, strict=True)
        }

        def judge(inputs: Inputs, indices: Sequence[int], carve: Carve) -> list[tuple[float, bool]]:
            return likelihood.loglikelihoods(
                self._llava, inputs, [answers[index] for index in indices], carve=carve, seed=self._seed(indices)
            )

        return self._each(self._ready(questions, indices), indices, only, judge)

    def _each(
        self,
        ready: Ready,
        indices: Sequence[int],
        only: Collection[str] | None,
        ask: Callable[[Inputs, Sequence[int], Carve], Sequence[Any]],
    ) -> list[dict[str, Any]]:
        """Records of what `ask` gives for each row of what is ready with each method."""
        names = [name for name in self.methods if only is None or name in only]
        answered = dict[int, dict[str, Any]]()
        for own, inputs, most in ready.batches:
            found = {}
            for name in names:
                start, shape = time.perf_counter(), (name, ask.__name__, jax.tree.map(np.shape, inputs.named))
                found[name] = ask(inputs, own, self._at_most(self.methods[name], most))
                self.spent["device" if str(shape) in self._warm else "compiling"] += time.perf_counter() - start
                self._warm.add(str(shape))
            answered |= {index: {name: found[name][row] for name in names} for row, index in enumerate(own)}
        return [
            {"sample": index} | ({"error": ready.errors[index]} if index in ready.errors else {"said": answered[index]})
            for index in indices
        ]

    def _seed(self, indices: Sequence[int]) -> int:
        """Of a batch, whoever asks it."""
        return (self._settings.seed * 1_000_003 + indices[0]) % 2**32

    def _at_most(self, carve: Carve, most: int) -> Carve:
        """Without its border, a thin strip of an image has fewer tokens than a cut keeps: then it keeps them all."""
        if self._asking.border != "drop" or carve is None:
            return carve
        return tuple(
            dataclasses.replace(cut, keep=min(cut.keep, most)) if isinstance(cut.keep, int) and most else cut
            for cut in self._cuts(carve)
        )

    def _cuts(self, carve: Carve) -> Schedule:
        return parse(carve, num_layers=self._llava.config.text.num_layers)
