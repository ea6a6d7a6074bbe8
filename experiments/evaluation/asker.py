"""The worker of an evaluation: holds the model, asks it, times it and notes what its cuts did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.core import loading, methods, results
from experiments.core.memory import check_request
from experiments.core.schedules import by_text
from experiments.data.questions import batches
from experiments.data.scene_questions import SceneQuestions
from experiments.evaluation.settings import Settings
from experiments.metrics import latency as timing
from experiments.reports.patch_maps.recorder import PatchMapRecorder
from models.engine import decode, prefill
from models.engine.decode import DECODE_CAPACITY_BUCKET
from models.engine.plan import Carve, parse
from models.engine.prompt import round_up

MAX_NEW_TOKENS = SceneQuestions.max_new_tokens
DECODE_CAPACITY = round_up(MAX_NEW_TOKENS, DECODE_CAPACITY_BUCKET)  # what `generate` leaves in the cache


class Asker:
    """Loads the checkpoint once and is asked for one batch after the other.

    Args:
      settings: of the evaluation.

    Attributes:
      methods: what to compare, by name, as `carve` arguments.

    Raises:
      CommandError: the model is none that the scenes are for, or cannot be carved like that.
      Whatever `experiments.core.loading.load` raises.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._questions = SceneQuestions(settings.scenes, settings.seed)
        self._checkpoint = settings.load()
        self._llava = self._checkpoint.llava
        loading.check_square(settings.model, self._llava)
        given = by_text(settings.schedules)
        self.methods = methods.to_compare(
            self._llava, settings.keep, settings.methods, given, clip=self._checkpoint.clip
        )
        check_request(self._llava, self._encode([0], rows=1), MAX_NEW_TOKENS, times=settings.batch_size)
        self._warm: set[tuple[int, ...]] = set()  # shapes of prompts for which everything is compiled

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        return {
            **self._checkpoint.identity,
            **methods.identity(self._llava, self.methods),
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
          What `answer` gives.
        """
        return self.answer(self._encode(indices), indices, timed=timed)

    def _encode(self, indices: Sequence[int], rows: int | None = None) -> loading.Inputs:
        """A batch of full size: the last question is repeated where there are fewer, so that nothing compiles anew."""
        filled = [*indices, *[indices[-1]] * ((rows or self._settings.batch_size) - len(indices))]
        samples = [self._questions.sample(index) for index in filled]
        return self._checkpoint.encode([sample.images for sample in samples], [sample.text for sample in samples])

    def answer(self, inputs: loading.Inputs, indices: Sequence[int], *, timed: bool) -> dict[str, Any]:
        """Ask every method, in turns, so that noise hits all alike.

        What is timed is the prefill that is answered from, with the input on the device. Where nothing of its shape was
        timed before there is another one first, which compiles.

        Args:
          inputs: a batch.
          indices: of its questions.
          timed: measure the prefill too.

        Returns:
          `samples`, one record per question; where it is timed also `prefill_s`, a list per method, `cache_bytes` per
          question, and `first_call_s` where something compiled.
        """
        prompt = jax.device_put(self._llava.prompt(**inputs.named, bucket=loading.BUCKET))
        seed = self._seed(indices)

        def prefilled(carve: Carve) -> tuple[prefill.Prefilled, float]:
            return timing.timed(
                lambda: self._llava.prefill(prompt, carve=carve, seed=seed, decode_capacity=DECODE_CAPACITY)
            )

        entry: dict[str, Any] = {}
        if timed and prompt.input_ids.shape not in self._warm:
            entry["first_call_s"] = {name: prefilled(carve)[1] for name, carve in self.methods.items()}
            self._warm.add(prompt.input_ids.shape)
        said, seconds, held = {}, {}, {}
        for name, carve in self.methods.items():
            made, seconds[name] = prefilled(carve)
            held[name] = made.cache.nbytes / self._settings.batch_size
            said[name] = self._say(made, seed)
        if timed:
            entry |= {"prefill_s": {name: [taken] for name, taken in seconds.items()}, "cache_bytes": held}
        return entry | {"samples": self._records(indices, said)}

    def _say(self, prefilled: prefill.Prefilled, seed: int) -> list[str]:
        """What follows; the prompt's cache is given away."""
        decode_config = decode.DecodeConfig.of(self._llava.config)
        tokens = decode.finish(self._llava, prefilled, seed, max_new_tokens=MAX_NEW_TOKENS, decode_config=decode_config)
        return self._checkpoint.decode(tokens)

    def _records(self, indices: Sequence[int], said: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        """One per question, with what every method said."""
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

    def describe(self) -> dict[str, dict[str, Any]]:
        """Facts about each method, by name: where it cuts, what it reads, its paper and the prefill's FLOPs."""
        prompt = self._llava.prompt(**self._encode([0], rows=1).named, bucket=loading.BUCKET)
        length = prompt.input_ids.shape[1]
        return {name: methods.facts(self._llava.config, carve, length) for name, carve in self.methods.items()}

    def look(self, chosen: Sequence[int]) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
        """What becomes of the patches of some questions' images, batch by batch as they were asked.

        Args:
          chosen: the questions.

        Returns:
          A record per question for the gallery of results.json (`experiments.reports.patch_maps`), and its image as the
          tower sees it, uint8 [height, width, 3].
        """
        recorder, depth = PatchMapRecorder(self._llava), self._llava.config.text.num_layers
        schedules = {name: parse(carve, num_layers=depth) for name, carve in self.methods.items()}
        records, images = dict[int, dict[str, Any]](), dict[int, np.ndarray]()
        for part in batches(len(self._questions), self._settings.batch_size):
            own = [index for index in part if index in chosen]
            if not own:
                continue
            inputs, places = self._encode(part), [part.index(index) for index in own]
            seen = self._checkpoint.seen(inputs.pixel_values)
            for index, row in zip(own, places, strict=True):
                images[index] = seen[row]
                records[index] = recorder.scene(self._questions.sample(index), index)
                records[index] |= {"maps": [], "ranks": {}}
            found = recorder.record(
                schedules, inputs, seed=self._seed(part), rows=places, decode_capacity=DECODE_CAPACITY
            )
            for name, (maps, ranks) in found.items():
                answered, _ = methods.visual_tokens(self._llava, self.methods[name])
                for number, index in enumerate(own):
                    records[index]["maps"] += [
                        {"method": name, "visual_tokens": kept, "answered": kept == answered, **fate[number]}
                        for kept, fate in maps.items()
                    ]
                    if ranks:
                        records[index]["ranks"][name] = ranks[number]
        return [records[index] for index in chosen], [images[index] for index in chosen]

    def _seed(self, indices: Sequence[int]) -> int:
        """Each batch its own, whoever asks it."""
        return (self._settings.seed * 1_000_003 + indices[0]) % 2**32
