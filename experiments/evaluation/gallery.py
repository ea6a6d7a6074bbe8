"""Calls that record what becomes of the patches of some questions' images, for the gallery of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.evaluation.batches import Batch
from experiments.evaluation.probe import Probe
from experiments.evaluation.worker import ModelWorker
from experiments.reports.patch_maps import replay
from experiments.reports.patch_maps.recorder import PatchMapRecorder
from models.engine.model import VisionLanguageModel
from models.engine.plan import Schedule, resolve
from models.engine.prefill import Prefilled
from models.engine.prompt import Prompt

Shown = tuple[list[dict[str, Any]], list[np.ndarray]]
"""Records for the gallery of results.json, and their images as the tower sees them, uint8 [height, width, 3]."""


@dataclasses.dataclass(frozen=True)
class MapProbe(Probe):
    """Records the patch map of those questions that are chosen, None for the others, as `map`."""

    chosen: frozenset[int]

    def __call__(
        self,
        model: VisionLanguageModel,
        prompt: Prompt,
        cuts: Schedule,
        *,
        indices: Sequence[int],
        seed: int,
        decode_capacity: int,
    ) -> tuple[Prefilled, Mapping[str, list[Any]]]:
        """See `Probe`."""
        made = model.prefill(prompt, carve=cuts, seed=seed, decode_capacity=decode_capacity)
        rows = [row for row, index in enumerate(indices) if index in self.chosen]
        maps = dict(zip(rows, PatchMapRecorder(model).maps(made.cuts, rows), strict=True))
        return made, {"map": [maps.get(row) for row in range(len(indices))]}


@dataclasses.dataclass(frozen=True)
class LookAtScenes:
    """A call: patch maps of all cells, and of single cuts at the paper's budgets too; batches are those of the answers.

    Attributes:
      chosen: the questions.
    """

    chosen: Sequence[int]

    def __call__(self, worker: ModelWorker) -> Shown:
        """Have a worker do it."""
        recorder, found = PatchMapRecorder(worker.model), dict[int, tuple[dict[str, Any], np.ndarray]]()
        schedules = {name: cell.cuts for name, cell in worker.cells.items()}
        for part in worker.questions.batches(worker.config.batch_size):
            for batch, rows in _batches(worker, part, self.chosen):
                maps = recorder.record(
                    schedules, batch.inputs, seed=batch.seed, rows=rows, decode_capacity=worker.decode_capacity
                )
                for number, (index, record, image) in enumerate(_scenes(worker, recorder, batch, rows)):
                    record |= {"maps": [], "ranks": {}}
                    for name, (by_count, ranks) in maps.items():
                        answered = worker.cells[name].tokens
                        record["maps"] += [
                            {"method": name, "visual_tokens": kept, "answered": kept == answered, **own[number]}
                            for kept, own in by_count.items()
                        ]
                        if ranks:
                            record["ranks"][name] = ranks[number]
                    found[index] = record, image
        return [found[index][0] for index in self.chosen], [found[index][1] for index in self.chosen]


@dataclasses.dataclass(frozen=True)
class LookAtBatch:
    """A call: records without maps, with the ranks of patches by method.

    Attributes:
      indices: of a batch.
      chosen: those questions that the gallery shows.
    """

    indices: Sequence[int]
    chosen: frozenset[int]

    def __call__(self, worker: ModelWorker) -> Shown:
        """Have a worker do it."""
        recorder, every = PatchMapRecorder(worker.model), worker.model.config.tokens_per_image
        cuts = {cell.method: resolve(cell.cuts, every).cuts for cell in worker.cells.values()}
        ranked = {method: replay.Request(own[0]) for method, own in cuts.items() if replay.has_ranks(own)}
        records, images = list[dict[str, Any]](), list[np.ndarray]()
        for batch, rows in _batches(worker, self.indices, self.chosen):
            made = replay.replay(worker.model, batch.prompt(worker.model, ()), batch.seed, ranked)
            ranks = {method: recorder.ranks(own, rows) for method, (_, own) in made.items()}  # the same at all budgets
            for number, (_, record, image) in enumerate(_scenes(worker, recorder, batch, rows)):
                records.append(record | {"ranks": {method: own[number] for method, own in ranks.items()}})
                images.append(image)
        return records, images


def _batches(worker: ModelWorker, indices: Sequence[int], chosen: Collection[int]) -> Iterator[tuple[Batch, list[int]]]:
    """Batches with the rows of chosen questions, where there are any."""
    if not set(indices) & set(chosen):
        return
    for batch in worker.batches.read(worker.questions, indices)[0]:
        if rows := [row for row, index in enumerate(batch.indices) if index in chosen]:
            yield batch, rows


def _scenes(
    worker: ModelWorker, recorder: PatchMapRecorder, batch: Batch, rows: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any], np.ndarray]]:
    """Index, record and image of each of these rows, which have one image each."""
    for row in rows:
        index = batch.indices[row]
        sample = worker.questions.sample(index)
        seen = worker.checkpoint.seen(worker.batches.encoder([sample], 1).pixel_values)[0]
        yield index, recorder.scene(sample, index), seen
