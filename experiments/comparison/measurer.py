"""The worker of a comparison: holds the model, and asks, counts and times the cells that it is told."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from experiments.comparison import pairs
from experiments.comparison.cells import Cell, Grid, grid
from experiments.comparison.own_time import Own
from experiments.comparison.settings import Settings
from experiments.core import cli, methods, results
from experiments.core.loading import BUCKET
from experiments.core.memory import check_request
from experiments.data.encoder import Encoder
from experiments.data.questions import Sample
from experiments.metrics.summary import BASELINE
from experiments.reports import gallery
from experiments.reports.patch_maps import replay
from experiments.reports.patch_maps.recorder import PatchMapRecorder
from models.engine import decode, plan, prefill
from models.engine.prompt import Prompt, round_up
from models.engine.relevance import without_unused_questions
from models.engine.target import target_of
from models.errors import CommandError

_CODE = (  # what decides what is measured; tables and plot can change
    "experiments/comparison/cells.py",
    "experiments/comparison/measurer.py",
    "experiments/comparison/own_time.py",
    "experiments/metrics/costs.py",
    "experiments/reports/patch_maps",
)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Questions that are asked together: their numbers, what is wrong with others, and vanilla's logits [B, V]."""

    asked: list[int]
    errors: dict[int, str]
    seed: int
    prompt: Any  # None where none can be asked
    vanilla: np.ndarray


class Measurer:
    """Loads the checkpoint once and is told one piece of work after the other.

    Args:
      settings: of the comparison.

    Raises:
      CommandError: the model is none that the scenes are for, or a method or budget does not exist.
      Whatever `experiments.core.loading.load` raises.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._checkpoint = settings.load()
        self._llava = self._checkpoint.llava
        if not self._llava.square:
            raise CommandError(f"{settings.model} sees an image as several tiles; compare is for models that see one")
        self._decode_config = decode.DecodeConfig.of(self._llava.config)
        files = settings.files
        self._questions = settings.questions()
        self._encoder = (
            Encoder(self._checkpoint)
            if files is None
            else Encoder(self._checkpoint, conversation=files.conversation, border=files.border)
        )
        self._new_tokens = (files and files.max_new_tokens) or self._questions.max_new_tokens
        self._room = round_up(self._new_tokens, decode.DECODE_CAPACITY_BUCKET)
        first = self._first()
        check_request(self._llava, self._encoder([first], 1), self._new_tokens, times=settings.batch_size)
        self._length = self._prompt([first], 1).input_ids.shape[1]
        self._grid: Grid = grid(
            self._llava.config, settings.methods, settings.keeps, length=self._length, given=settings.schedules
        )
        for cell in self._grid.cells.values():
            with methods.said(cell.key):
                methods.check_told(cell.cuts, clip=self._checkpoint.clip)
            self._encoder.check_cuts(cell.cuts)
        self._threads = pairs.at_a_time()  # cells, in compiling too
        self._own: dict[str, Own] = {}
        self._recorder = PatchMapRecorder(self._llava)
        self._chosen = frozenset(gallery.choose(self._questions, settings.gallery))
        self._batch = functools.lru_cache(maxsize=1)(self._read)  # cells come a few at a time

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        return {
            **self._checkpoint.identity,
            "versions": results.versions(),
            "code_sha256": results.code_checksum(*_CODE),
            "image_aspect_ratio": self._checkpoint.image_aspect_ratio,
            "max_new_tokens": self._new_tokens,
            "decode_capacity": self._room,
            **self._questions.identity(),
        }

    def machine(self) -> dict[str, Any]:
        """What this worker runs on."""
        return results.machine()

    def describe(self) -> dict[str, Any]:
        """The grid as JSON types: `cells` by key, `lines`, and the `length` that FLOPs are counted for."""
        cells = {
            key: {"method": cell.method, "tokens": cell.tokens, "average": cell.average, "flops": cell.flops}
            | methods.about(cell.cuts)
            for key, cell in self._grid.cells.items()
        }
        lines = [vars(line) for line in self._grid.lines]
        return {"cells": cells, "lines": lines, "length": self._length}

    def cost(self, indices: Sequence[int], key: str) -> dict[str, Any]:
        """XLA's count of the prefill's operations for the first question, and the bytes of its cache."""
        cell, prompt = self._grid.cells[key], self._prompt([self._questions.sample(indices[0])], 1)
        cuts = plan.resolve(cell.cuts, prompt.visual_slots.shape[1], images=prompt.images)
        target = target_of(jax.local_devices()[0])
        lowered = prefill.prefill.lower(
            self._llava,
            without_unused_questions(prompt, cuts.cuts),
            np.uint32(0),
            plan=cuts,
            decode_capacity=0,
            target=target,
        )
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(lowered.out_info.cache.layers))
        return {"xla_flops": (lowered.cost_analysis() or {}).get("flops"), "cache_bytes": held}

    def ask(self, indices: Sequence[int], keys: Sequence[str]) -> dict[str, Any]:
        """Ask cells about a batch.

        Args:
          indices: of the questions, not more than a batch has.
          keys: of the cells.

        Returns:
          `indices` of the questions that could be asked, `errors` of the others by index; and `found` by cell, for each
          question that could be: what was `said`, the Kullback-Leibler divergence in nats of the next token's
          distribution from vanilla's (`kl`), whether the likeliest token is vanilla's (`same_first`), and for questions
          of the gallery what became of the image's patches (`map`, see `experiments.reports.patch_maps`; else None).
        """
        batch = self._batch(tuple(indices))
        asked = list(keys) if batch.asked else []
        with ThreadPoolExecutor(self._threads) as threads:
            found = dict(zip(asked, threads.map(functools.partial(self._ask, batch), asked), strict=True))
        return {"indices": batch.asked, "errors": batch.errors, "found": found}

    def _ask(self, batch: _Batch, key: str) -> dict[str, list[Any]]:
        rows = len(batch.asked)
        prefilled = self._prefill(self._grid.cells[key], batch.prompt, batch.seed)
        logits = np.asarray(prefilled.logits)[:rows]
        return {
            "said": self._say(prefilled, batch.seed)[:rows],
            "kl": [round(float(nats), 9) for nats in divergence(batch.vanilla, logits)],
            "same_first": (logits.argmax(-1) == batch.vanilla.argmax(-1)).tolist(),
            "map": [
                self._recorder.maps(prefilled.cuts, [row])[0] if index in self._chosen else None
                for row, index in enumerate(batch.asked)
            ],
        }

    def look(self, indices: Sequence[int]) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
        """Questions of the gallery.

        Args:
          indices: of a batch.

        Returns:
          For each that is in the gallery and could be asked a record without its maps, with the `ranks` of its patches
          by method; and its image as the tower sees it, uint8 [height, width, 3].
        """
        samples, _, _ = self._packed(indices, self._settings.batch_size)
        batch = self._batch(tuple(indices))
        rows = [row for row, index in enumerate(batch.asked) if index in self._chosen]
        shown = [(batch.asked[row], samples[batch.asked[row]]) for row in rows]
        records = [self._recorder.scene(sample, index) | {"ranks": {}} for index, sample in shown]
        ranked = {
            cell.method: replay.Request(cell.cuts[0])
            for cell in self._grid.cells.values()
            if replay.has_ranks(cell.cuts)
        }
        if rows:  # ranks are the same at all budgets
            for name, (_, ranks) in replay.replay(self._llava, batch.prompt, batch.seed, ranked).items():
                for record, own in zip(records, self._recorder.ranks(ranks, rows), strict=True):
                    record["ranks"][name] = own
        images = [self._checkpoint.seen(self._encoder([sample], 1).pixel_values)[0] for _, sample in shown]
        return records, images

    def _read(self, indices: tuple[int, ...]) -> _Batch:
        asked, errors, prompt = self._packed(indices, self._settings.batch_size)
        seed = (self._settings.seed * 1_000_003 + indices[0]) % 2**32  # whoever asks it; as in `experiments.eval`
        if not asked:
            return _Batch([], errors, seed, None, np.zeros(0))
        vanilla = self._prefill(self._grid.cells[BASELINE], prompt, seed)
        return _Batch(list(asked), errors, seed, prompt, np.asarray(vanilla.logits)[: len(asked)])

    def _first(self) -> Sample:
        """A question that can be asked."""
        why = "it has none"
        for part in self._questions.batches(1):
            asked, errors, _ = self._packed(part, 1)
            if asked:
                return asked[part[0]]
            (why,) = errors.values()
        raise CommandError(f"no question of the file can be asked: {why}")

    def _packed(self, indices: Sequence[int], size: int) -> tuple[dict[int, Sample], dict[int, str], Any]:
        """Those of the questions that can be asked, what is wrong with the others, and the batch; None for none."""
        asked, errors = self._encoder.readable(self._questions, indices)
        try:
            return asked, errors, self._prompt(list(asked.values()), size) if asked else None
        except (CommandError, ValueError, TypeError) as error:
            if len(asked) == 1:
                return {}, errors | dict.fromkeys(asked, f"{type(error).__name__}: {cli.one_line(error)}"), None
            alone = [self._packed([index], 1) for index in asked]
            asked = {index: sample for fine, _, _ in alone for index, sample in fine.items()}
            errors |= {index: why for _, wrong, _ in alone for index, why in wrong.items()}
            return asked, errors, self._prompt(list(asked.values()), size) if asked else None

    def time(self, indices: Sequence[int], keys: Sequence[str]) -> dict[str, dict[str, float]]:
        """Seconds of each cell's prefill of a batch, and of its compressors alone on one image: one turn for each."""
        batch = self._batch(tuple(indices))
        prefill_s, own_s = {}, {}
        for key in keys:
            cell = self._grid.cells[key]
            if key not in self._own:  # compiles
                self._own[key] = Own(self._llava, cell.cuts, length=self._length)
                self._own[key]()
                self._prefill(cell, batch.prompt, batch.seed)
        for key in keys:
            start = time.perf_counter()
            self._prefill(self._grid.cells[key], batch.prompt, batch.seed)
            prefill_s[key] = time.perf_counter() - start
            own_s[key] = self._own[key]()
        return {"prefill_s": prefill_s, "own_s": own_s}

    def _prompt(self, samples: Sequence[Sample], size: int) -> Prompt:
        """A batch of `size` rows."""
        return jax.device_put(self._llava.prompt(**self._encoder(samples, size).named, bucket=BUCKET))

    def _prefill(self, cell: Cell, prompt: Prompt, seed: int) -> prefill.Prefilled:
        if cell.side is not None and prompt.pixel_values is not None:
            size = cell.side * self._llava.config.vision.patch_size
            prompt = dataclasses.replace(prompt, pixel_values=_reduced(prompt.pixel_values, size=size))
        return jax.block_until_ready(
            self._llava.prefill(prompt, carve=cell.cuts, seed=seed, decode_capacity=self._room)
        )

    def _say(self, prefilled: prefill.Prefilled, seed: int) -> list[str]:
        tokens = decode.finish(
            self._llava, prefilled, seed, max_new_tokens=self._new_tokens, decode_config=self._decode_config
        )
        return self._checkpoint.decode(tokens)


def divergence(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of softmax(logits) from softmax(reference), [B, V] each: [B] nats, in float64."""
    first, second = (_log_softmax(np.asarray(array, np.float64)) for array in (reference, logits))
    return np.maximum((np.exp(first) * (first - second)).sum(-1), 0)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@functools.partial(jax.jit, static_argnames=("size",))
def _reduced(pixels: jax.Array, *, size: int) -> jax.Array:
    """Images [images, C, height, width] at a resolution of size x size, enlarged again."""
    small = jax.image.resize(pixels, (*pixels.shape[:2], size, size), "bicubic", antialias=True)
    return jax.image.resize(small, pixels.shape, "bicubic").astype(pixels.dtype)
