"""Records patch maps of questions that a worker asks, from the same batches and seeds as their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.core.loading import BUCKET, Inputs
from experiments.data.questions import Sample
from experiments.reports.patch_maps import maps
from experiments.reports.patch_maps.replay import Request, can_replay, replay
from models.engine.plan import Schedule, has_budgets_per_image, resolve
from models.engine.sequence import CutRecord

OTHER_BUDGETS = (1 / 3, 2 / 9, 1 / 9)  # of the visual tokens: 192, 128 and 64 of 576, the paper's
_WIDE = 64  # prompts of most lengths share one program

Maps = dict[int, list[dict[str, Any]]]  # by visual tokens left and row
Ranks = list[dict[str, list[int]]]  # by row and name


class PatchMapRecorder:
    """Records what cuts do to the images of one-image questions.

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
            "grid": maps.grid_of(self._patches),
        }

    def maps(self, cuts: Sequence[CutRecord], rows: Sequence[int]) -> list[dict[str, Any]]:
        """The patch map of each of these rows of a batch after its cuts, see `maps.patch_map`."""
        joined = (maps.joined(cuts, row, self._count) for row in rows)
        return [maps.patch_map(*one, first=self._first, patches=self._patches) for one in joined]

    def ranks(self, ranks: Mapping[str, np.ndarray], rows: Sequence[int]) -> Ranks:
        """By row the ranks of the patches, from those of all tokens [B, N]."""
        own = slice(self._first, self._first + self._patches)
        return [{name: rank[row, own].tolist() for name, rank in ranks.items()} for row in rows]

    def record(
        self, schedules: Mapping[str, Schedule], inputs: Inputs, *, seed: int, rows: Sequence[int], decode_capacity: int
    ) -> dict[str, tuple[Maps, Ranks]]:
        """What schedules do to a batch; single cuts with the paper's budgets too.

        Args:
          schedules: of cuts, by name; none leaves everything.
          inputs: the batch.
          seed: of the compressors.
          rows: which rows of the batch to record.
          decode_capacity: in the cache, so that a prefill's program is that of the answers.

        Returns:
          By name the maps, by visual tokens left, most first; and by row the ranks of its patches, empty for methods
          that have none.
        """
        found, requests = dict[str, tuple[Maps, Ranks]](), dict[str, Request]()
        for name, schedule in schedules.items():
            prompt = self._llava.prompt(**inputs.named, per_image=has_budgets_per_image(schedule), bucket=BUCKET)
            cuts = resolve(schedule, prompt.visual_slots.shape[1], images=prompt.images).cuts
            left = int(cuts[-1].keep) if cuts else self._count
            if can_replay(cuts):
                budgets = {left, *(max(1, round(self._count * part)) for part in OTHER_BUDGETS)} - {self._count}
                requests[name] = Request(cuts[0], tuple(sorted(budgets, reverse=True)))
                continue
            done: Sequence[CutRecord] = ()
            if cuts:
                done = self._llava.prefill(prompt, carve=schedule, seed=seed, decode_capacity=decode_capacity).cuts
            found[name] = {left: self.maps(done, rows)}, []
        wide = self._llava.prompt(**inputs.named, bucket=_WIDE)
        for name, (by_budget, ranks) in replay(self._llava, wide, seed, requests).items():
            own = {budget: self.maps([by_budget[budget]], rows) for budget in requests[name].budgets}
            found[name] = own, self.ranks(ranks, rows) if ranks else []
        return {name: found[name] for name in schedules}
