"""Carve maps of questions that a worker asks, from the same batches and seeds as their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.core.loading import BUCKET, Inputs
from experiments.data.questions import Sample
from experiments.reports.patch_maps import fates
from experiments.reports.patch_maps.replay import Request, can, replay
from models.engine.plan import Schedule, has_budgets_per_image, resolve
from models.engine.sequence import CutRecord

OTHER_BUDGETS = (1 / 3, 2 / 9, 1 / 9)  # of the visual tokens: 192, 128 and 64 of 576, the paper's
_WIDE = 64  # prompts of most lengths share one program

Maps = dict[int, list[dict[str, Any]]]  # by visual tokens left and row


class Looker:
    """Looks at what cuts do to the images of one-image questions.

    Args:
      llava: a model that sees an image as one square of patches.
    """

    def __init__(self, llava: Any):
        self._llava, config = llava, llava.config
        self._count, self._patches = config.tokens_per_image, config.vision.num_patches
        self._first = int(config.keep_class_token)

    def scene(self, sample: Sample, index: int) -> dict[str, Any]:
        """What a record of the gallery begins with, for question number `index`."""
        return {
            "sample": index,
            "scene": sample.group,
            "family": sample.family,
            "question": sample.text,
            "answer": sample.answer,
            "grid": fates.grid_of(self._patches),
        }

    def maps(self, cuts: Sequence[CutRecord], rows: Sequence[int]) -> list[dict[str, Any]]:
        """For each of these rows of a batch what its cuts did, see `fates.recorded`."""
        joined = (fates.joined(cuts, row, self._count) for row in rows)
        return [fates.recorded(*one, first=self._first, patches=self._patches) for one in joined]

    def ranks(self, ranks: Mapping[str, np.ndarray], rows: Sequence[int]) -> list[dict[str, list[int]]]:
        """By row the ranks of the patches, from those of all tokens [B, N]."""
        own = slice(self._first, self._first + self._patches)
        return [{name: rank[row, own].tolist() for name, rank in ranks.items()} for row in rows]

    def look(
        self, schedules: Mapping[str, Schedule], inputs: Inputs, *, seed: int, rows: Sequence[int], decode_capacity: int
    ) -> dict[str, tuple[Maps, list[dict[str, list[int]]]]]:
        """What schedules do to a batch; single cuts with the paper's budgets too.

        Args:
          schedules: of cuts, by name; none leaves everything.
          inputs: the batch.
          seed: of the compressors.
          rows: which rows of the batch to look at.
          decode_capacity: in the cache, so that a prefill's program is that of the answers.

        Returns:
          By name the maps, by visual tokens left, most first; and by row the ranks of its patches, nothing for methods
          that have none.
        """
        found: dict[str, tuple[Maps, list[dict[str, list[int]]]]] = {}
        asked: dict[str, Request] = {}
        for name, schedule in schedules.items():
            prompt = self._llava.prompt(**inputs.named, per_image=has_budgets_per_image(schedule), bucket=BUCKET)
            cuts = resolve(schedule, prompt.visual_slots.shape[1], images=prompt.images).cuts
            left = int(cuts[-1].keep) if cuts else self._count
            budgets = {left, *(max(1, round(self._count * part)) for part in OTHER_BUDGETS)} - {self._count}
            if can(cuts):
                asked[name] = Request(cuts[0], tuple(sorted(budgets, reverse=True)))
            else:
                records = (
                    self._llava.prefill(prompt, carve=schedule, seed=seed, decode_capacity=decode_capacity).cuts
                    if cuts
                    else ()
                )
                found[name] = {left: self.maps(records, rows)}, []
        wide = self._llava.prompt(**inputs.named, bucket=_WIDE)
        for name, (made, ranks) in replay(self._llava, wide, seed, asked).items():
            maps = {keep: self.maps([made[keep]], rows) for keep in asked[name].budgets}
            found[name] = maps, self.ranks(ranks, rows) if ranks else []
        return {name: found[name] for name in schedules}
