"""The worker of an evaluation: holds the model, asks it, times it and draws what it saw."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
from PIL import Image

from experiments import loading, methods, pictures, results, schedules
from experiments.evaluation.questions import batches
from experiments.evaluation.scene_questions import SceneQuestions
from experiments.evaluation.settings import Settings
from experiments.memory import check_request
from experiments.summary import BASELINE
from models.engine.decode import ROOM_BUCKET
from models.engine.prompt import round_up

MAX_NEW_TOKENS = SceneQuestions.max_new_tokens
ROOM = round_up(MAX_NEW_TOKENS, ROOM_BUCKET)  # what `generate` leaves in the cache
REPEATS = 2  # of each timed prefill


class Asker:
    """Loads the checkpoint once and is asked for one batch after the other.

    Args:
      settings: of the evaluation.

    Attributes:
      methods: what to compare, by name, as `carve` arguments.

    Raises:
      CommandError: the model is none that the scenes are for, or cannot be carved like that.
      Whatever `experiments.loading.load` raises.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._questions = SceneQuestions(settings.scenes, settings.seed)
        self._checkpoint = settings.load()
        self._llava = self._checkpoint.llava
        loading.check_square(settings.model, self._llava)
        given = schedules.by_text(settings.schedules)
        self.methods = methods.to_compare(
            self._llava, settings.keep, settings.methods, given, clip=self._checkpoint.clip
        )
        check_request(self._llava, self._encode([0], rows=1), MAX_NEW_TOKENS, times=settings.batch_size)
        self._warm: set[tuple[int, ...]] = set()  # shapes of prompts for which everything is compiled

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        return {
            **self._checkpoint.identity,
            "methods": {name: methods.visual_tokens(self._llava, carve) for name, carve in self.methods.items()},
            "versions": results.versions(),
            "code_sha256": results.code_checksum(),
        }

    def machine(self) -> dict[str, Any]:
        """What this worker runs on."""
        return results.machine()

    def ask(self, indices: Sequence[int], *, timed: bool) -> dict[str, Any]:
        """Ask every method.

        Args:
          indices: of the questions, not more than a batch has.
          timed: measure the prefill too.

        Returns:
          `samples`, one record per question, and where `timed` what `_time_prefill` gives.
        """
        inputs = self._encode(indices)
        entry = self._time_prefill(inputs) if timed else {}
        return entry | {"samples": self.answer(inputs, indices)}

    def _encode(self, indices: Sequence[int], rows: int | None = None) -> loading.Inputs:
        """A batch of full size: the last question is repeated where there are fewer, so that nothing compiles anew."""
        filled = [*indices, *[indices[-1]] * ((rows or self._settings.batch_size) - len(indices))]
        samples = [self._questions.sample(index) for index in filled]
        return self._checkpoint.encode([sample.images for sample in samples], [sample.text for sample in samples])

    def answer(self, inputs: loading.Inputs, indices: Sequence[int]) -> list[dict[str, Any]]:
        """One record per question, with what every method said."""
        seed = self._settings.seed
        said = {}
        for name, carve in self.methods.items():
            tokens = self._llava.generate(
                **inputs.named,
                max_new_tokens=MAX_NEW_TOKENS,
                carve=carve,
                seed=(seed * 1_000_003 + indices[0]) % 2**32,  # each batch its own, whoever asks it
            )
            said[name] = self._checkpoint.decode(tokens)
        records = []
        for row, index in enumerate(indices):
            sample = self._questions.sample(index)
            records.append(
                {
                    "sample": index,
                    "scene": sample.group,
                    "family": sample.family,
                    "question": sample.text,
                    "answer": sample.answer,
                    "said": {name: texts[row] for name, texts in said.items()},
                }
            )
        return records

    def _time_prefill(self, inputs: loading.Inputs) -> dict[str, Any]:
        """Seconds of prefill with the input on the device, the methods taking turns, so that noise hits all alike.

        Args:
          inputs: a batch.

        Returns:
          Seconds per method, bytes of the cache per question, and the first calls' seconds where nothing was timed
          before.
        """
        prompt = jax.device_put(self._llava.prompt(**inputs.named))
        first, seconds = {}, {name: list[float]() for name in self.methods}
        held, warm = {}, prompt.input_ids.shape in self._warm
        for repeat in range(REPEATS if warm else REPEATS + 1):
            for name, carve in self.methods.items():
                start = time.perf_counter()
                prefilled = jax.block_until_ready(self._llava.prefill(prompt, carve=carve, room=ROOM))
                took = time.perf_counter() - start
                held[name] = prefilled.cache.nbytes / self._settings.batch_size
                if repeat == 0 and not warm:
                    first[name] = took
                else:
                    seconds[name].append(took)
        self._warm.add(prompt.input_ids.shape)
        return {"prefill_s": seconds, "cache_bytes": held} | ({"first_call_s": first} if first else {})

    def draw(self, records: Sequence[dict[str, Any]]) -> list[Image.Image]:
        """What the first method leaves of each of these questions' images."""
        shown = next(name for name in self.methods if name != BASELINE)
        pages = []
        for part in batches(len(records), self._settings.batch_size):
            own = [records[i] for i in part]
            inputs = self._encode([record["sample"] for record in own])
            prompt = self._llava.prompt(**inputs.named)
            prefilled = self._llava.prefill(prompt, carve=self.methods[shown], room=ROOM)
            images = self._checkpoint.seen(inputs.pixel_values)
            for row in range(len(own)):
                views = pictures.views_of([images[row]], self._llava.config, prefilled, row)
                pages.append(pictures.draw(views))
        return pages
