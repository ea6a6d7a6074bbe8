"""The worker of every evaluation: loads a checkpoint once, and asks it whatever it is told to ask."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from experiments.core import loading, methods, results
from experiments.core.config import ModelConfig, PromptConfig
from experiments.core.memory import Request, check_request
from experiments.core.methods import BASELINE
from experiments.data.questions import QuestionSource, Readable
from experiments.evaluation import likelihood, pairs
from experiments.evaluation.batches import EXAMPLE, Batch, Batches
from experiments.evaluation.cells import Cell, Comparison, capped
from experiments.evaluation.entries import Found, new_entry
from experiments.evaluation.probe import Probe
from experiments.metrics.costs import prefill_flops
from experiments.metrics.latency import timed as seconds_of
from experiments.metrics.summary import divergence, probability_lost
from models.engine import decode
from models.engine.plan import Schedule, has_budgets_per_image, resolve
from models.engine.prefill import Prefilled
from models.engine.prompt import round_up

MOST_CELLS = 64
"""Whose programs a process holds: on a CPU the programs of one take some 500 of the 65,530 mappings that Linux gives a
process, and a compiler that gets no more ends it."""
GROUP = 48  # cells that are asked all questions before others are: fewer than `MOST_CELLS`


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a worker is made of; can be pickled."""

    model: ModelConfig
    prompt: PromptConfig
    questions: QuestionSource
    comparison: Comparison
    batch_size: int  # questions at a time
    seed: int  # of methods that draw

    def about(self) -> dict[str, Any]:
        """What answers depend on beside questions and comparison, as JSON types."""
        prompt = {"border": self.prompt.border, "conversation": self.prompt.conversation}
        return {**prompt, "dtype": self.model.dtype, "batch_size": self.batch_size, "seed": self.seed}


class ModelWorker:
    """Holds a model and its questions.

    Args:
      config: what to load, and what to compare.

    Attributes:
      config: the same.
      checkpoint: model and processor.
      model: the model.
      questions: the question set.
      batches: makes prompts.
      cells: by name.
      max_new_tokens: of an answer.
      decode_capacity: slots for them in the cache.
      kept: whatever calls keep from one to the next.

    Raises:
      CommandError: the model cannot be carved like that, or its images not be brought to a square like that; the
        questions cannot be read.
      Whatever `experiments.core.loading.load` raises.
    """

    def __init__(self, config: WorkerConfig):
        self.config, model, prompt = config, config.model, config.prompt
        self.checkpoint = loading.load(
            model.source,
            dtype=model.dtype,
            revision=model.revision,
            clip=model.clip,
            clip_revision=model.clip_revision,
            image_aspect_ratio=prompt.image_aspect_ratio,
            request=Request(prompt.max_new_tokens or 1, config.batch_size, config.questions.least_images),
        )
        self.model = self.checkpoint.llava
        self.batches = Batches(self.checkpoint, config.questions, prompt, config.batch_size, config.seed)
        self.questions = self.batches.questions
        self.max_new_tokens = prompt.max_new_tokens or self.questions.max_new_tokens
        self.decode_capacity = round_up(self.max_new_tokens, decode.DECODE_CAPACITY_BUCKET)
        if config.comparison.square:
            loading.check_square(model.source, self.model)
        self.cells = config.comparison.cells(self.model, length=self.batches.length, visual=self.batches.visual)
        for name, cell in self.cells.items():
            with methods.naming(name):
                methods.check_evidence(cell.cuts, clip=self.checkpoint.clip)
            self.batches.encoder.check_cuts(cell.cuts)
        example = self.batches.encoder([EXAMPLE], 1)
        check_request(self.model, example, self.max_new_tokens, times=config.batch_size)
        self._compiled = set[Hashable]()
        self._held = set[str]()
        self.kept: dict[Hashable, Any] = {}

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        return {
            **self.checkpoint.identity,
            "image_aspect_ratio": self.checkpoint.image_aspect_ratio,
            "max_new_tokens": self.max_new_tokens,
            "decode_capacity": self.decode_capacity,
            **self.questions.identity(),
            "versions": results.versions(),
            "code_sha256": results.code_checksum(),
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Facts about each cell, by name: where it cuts, what it reads, its paper and the prefill's FLOPs."""
        config, found = self.model.config, {}
        for name, cell in self.cells.items():
            visual = config.tokens_per_image if self.model.square else self.batches.visual
            cuts = resolve(capped(cell.cuts, visual), visual).cuts
            flops = prefill_flops(config, self.batches.length, cuts) if self.model.square else None
            about = {"method": cell.method, "tokens": cell.tokens, "average": cell.average, "flops": flops}
            found[name] = about | methods.about(cuts)
        return found

    def hold(self, cells: Sequence[str]) -> None:
        """Make sure that not more cells than `MOST_CELLS` have compiled programs here; call it before asking these."""
        if len(self._held | set(cells)) > MOST_CELLS:
            self.forget()
        self._held |= set(cells)

    def forget(self) -> None:
        """Drop all compiled programs. What is asked next compiles, or finds its programs on disk."""
        jax.clear_caches()
        self._held.clear()
        self._compiled.clear()

    def answer(
        self,
        questions: Readable,
        indices: Sequence[int],
        cells: Sequence[str],
        *,
        max_new_tokens: int,
        beside_vanilla: bool = False,
        timed: bool = False,
        probe: Probe | None = None,
        then: Sequence[Sequence[int]] = (),
    ) -> dict[str, Any]:
        """Ask cells about a batch, by turns, so that noise hits all alike.

        What is timed is the prefill that is answered from, with the input on the device. Where nothing of its shape was
        timed before there is another one first, which compiles.

        Args:
          questions: see `Batches.read`.
          indices: see `Batches.read`.
          cells: names of those to ask.
          max_new_tokens: of an answer; fewer where the model's context ends before.
          beside_vanilla: compare the first token's distribution with vanilla's.
          timed: measure the prefill, one cell at a time.
          probe: measures more on the way.
          then: see `Batches.read`.

        Returns:
          An entry of a journal, see `experiments.evaluation.answers.SHAPE`; with `seconds` by what they were spent on.
        """
        self.hold(cells)
        start, probe = time.perf_counter(), probe or Probe()
        batches, errors = self.batches.read(questions, indices, then)
        entry = new_entry(cells, errors, waited=time.perf_counter() - start)
        for batch in batches:
            room = max(1, min(max_new_tokens, self.model.config.text.max_positions - batch.inputs.input_ids.shape[1]))
            if beside_vanilla and batch.vanilla is None:
                batch.vanilla = np.asarray(self.prefill(batch, self.cells[BASELINE], room).logits)
            if timed:
                self._compile(entry, batch, cells, room)
            work = functools.partial(self._answer, batch, room, beside_vanilla, probe, timed)
            found = self._each(entry, batch, cells, ("answer", room), work, 1 if timed else pairs.at_a_time())
            if timed:
                entry["prefill_s"] = {name: one.prefill_s for name, one in found.items()}
                entry["cache_bytes"] = {name: one.cache_bytes for name, one in found.items()}
        return entry

    def loglikelihoods(
        self, questions: Readable, indices: Sequence[int], cells: Sequence[str], *, continuations: Sequence[str]
    ) -> dict[str, Any]:
        """How well given answers follow.

        Arguments are those of `answer`, with a given answer for each question in `continuations`.

        Returns:
          As `answer`; a prediction is the mean negative log probability of the answer's tokens with the end of the
          turn, and whether greedy decoding would have said it.
        """
        start, tokenizer = time.perf_counter(), self.checkpoint.processor.tokenizer
        answers = {
            index: tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
            for index, text in zip(indices, continuations, strict=True)
        }
        batches, errors = self.batches.read(questions, indices)
        entry = new_entry(cells, errors, waited=time.perf_counter() - start)
        for batch in batches:
            given = [answers[index] for index in batch.indices]
            self._each(entry, batch, cells, "loglikelihoods", functools.partial(self._judge, batch, given), 1)
        return entry

    def prefill(self, batch: Batch, cell: Cell, max_new_tokens: int = 0, *, anew: bool = False) -> Prefilled:
        """A batch's prefill with a cell's cuts, complete on the device; `anew` as in `Batch.seen`."""
        return self._prefill(batch, cell, max_new_tokens, Probe(), anew=anew)[0]

    def _prefill(
        self, batch: Batch, cell: Cell, max_new_tokens: int, probe: Probe, *, anew: bool
    ) -> tuple[Prefilled, Mapping[str, list[Any]]]:
        cuts = self._cuts(batch, cell)
        prompt = batch.seen(self.model, cuts, cell.side, anew=anew)
        capacity = round_up(max_new_tokens, decode.DECODE_CAPACITY_BUCKET)
        made, measured = probe(
            self.model, prompt, cuts, indices=batch.indices, seed=batch.seed, decode_capacity=capacity
        )
        return jax.block_until_ready(made), measured

    def _cuts(self, batch: Batch, cell: Cell) -> Schedule:
        """A small image, or a thin strip without its border, may have fewer tokens than a cut keeps."""
        if (self.model.square and self.config.prompt.border != "drop") or not batch.most:
            return cell.cuts
        prompt = batch.prompt(self.model, cell.cuts)
        each = (prompt.images or 1) if has_budgets_per_image(cell.cuts) else 1
        return capped(cell.cuts, prompt.visual_slots.shape[1] // each)

    def _answer(self, batch: Batch, room: int, beside_vanilla: bool, probe: Probe, timed: bool, name: str) -> Found:
        rows, start = len(batch.indices), time.perf_counter()
        made, measured = self._prefill(batch, self.cells[name], room, probe, anew=timed)
        prefill_s = time.perf_counter() - start
        columns, cache_bytes = dict(measured), made.cache.nbytes / self.config.batch_size
        if beside_vanilla:
            assert batch.vanilla is not None
            vanilla, logits = (np.asarray(array)[:rows] for array in (batch.vanilla, made.logits))
            columns["kl"] = [round(float(nats), 9) for nats in divergence(vanilla, logits)]
            columns["lost"] = [round(float(share), 9) for share in probability_lost(vanilla, logits)]
            columns["same_first"] = (logits.argmax(-1) == vanilla.argmax(-1)).tolist()
        config = decode.DecodeConfig.of(self.model.config)
        tokens = decode.finish(self.model, made, batch.seed, max_new_tokens=room, decode_config=config)
        columns = {"prediction": self.checkpoint.decode(tokens)[:rows], **columns}
        return Found(columns, time.perf_counter() - start, prefill_s, cache_bytes)

    def _judge(self, batch: Batch, given: Sequence[Sequence[int]], name: str) -> Found:
        start, cell = time.perf_counter(), self.cells[name]
        cuts = self._cuts(batch, cell)
        prompt = batch.seen(self.model, cuts, cell.side, anew=False)
        found = likelihood.loglikelihoods(self.model, prompt, given, cuts=cuts, seed=batch.seed)
        return Found({"prediction": found}, time.perf_counter() - start)

    def _compile(self, entry: dict[str, Any], batch: Batch, cells: Sequence[str], room: int) -> None:
        """Compile the prefill of all cells, where that is not done, and note how long it took."""
        if (key := ("prefill", room, _shapes(batch))) not in self._compiled:
            entry["first_call_s"] = {}
            for name in cells:
                _, entry["first_call_s"][name] = seconds_of(
                    functools.partial(self.prefill, batch, self.cells[name], room, anew=True)
                )
            self._compiled.add(key)

    def _each(
        self,
        entry: dict[str, Any],
        batch: Batch,
        cells: Sequence[str],
        what: Hashable,
        work: Callable[[str], Found],
        at_a_time: int,
    ) -> dict[str, Found]:
        """Ask cells about a batch, and add what was found to an entry."""
        if at_a_time == 1:
            found = dict(zip(cells, map(work, cells), strict=True))
        else:
            with ThreadPoolExecutor(at_a_time) as threads:
                found = dict(zip(cells, threads.map(work, cells), strict=True))
        entry["indices"] += batch.indices
        for name, one in found.items():
            for column, values in one.columns.items():
                entry["found"][name].setdefault(column, []).extend(values)
            key = (what, name, _shapes(batch))
            entry["seconds"]["device" if key in self._compiled else "compiling"] += one.seconds
            self._compiled.add(key)
        return found


def _shapes(batch: Batch) -> str:
    return str(jax.tree.map(np.shape, batch.inputs.named))
