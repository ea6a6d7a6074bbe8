"""A reproduction, from its config to its table."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.comparison import calls, published
from experiments.comparison.cells import AtLayer, Line
from experiments.core import results
from experiments.core.config import RunConfig
from experiments.core.methods import BASELINE
from experiments.core.runner import Runner
from experiments.data.encoder import CONVERSATIONS
from experiments.evaluation.worker import GROUP, ModelWorker, WorkerConfig
from experiments.lmms import plan, protocol, tables
from experiments.lmms.answers import SHAPE, Answers
from experiments.lmms.harness import Harness
from experiments.lmms.requests import Request
from experiments.lmms.sets import Set
from experiments.reports import protocol_tables
from models.errors import CommandError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """One reproduction."""

    run: RunConfig  # where and by whom
    worker: WorkerConfig  # the model, and how it is asked
    sets: tuple[Set, ...]
    include: tuple[Path, ...]  # folders with tasks of one's own
    columns: tuple[tables.Column, ...]  # what is compared with all tokens; none for the protocol
    limit: int | None  # the first so many questions of each set alone

    @property
    def cells(self) -> list[str]:
        """Names of all that the table asks, vanilla first."""
        return [BASELINE, *(column.name for column in self.columns)]

    @property
    def protocol(self) -> bool:
        """Whether methods are judged by the protocol, and the paper's table is not made."""
        return not self.columns


def cost(config: ReproduceConfig, harness: Harness) -> tuple[str, int]:
    """The protocol's plan, and how many cells it has."""
    flops = plan.flops(config.worker)
    asked = {one.figures[0].label: harness.questions(one) for one in harness.sets if one.name not in harness.skipped}
    counts = {label: min(filter(None, (count, config.limit)), default=None) for label, count in asked.items()}
    return plan.text(plan.rows(counts, flops), flops), len(flops)


def dry_run(config: ReproduceConfig) -> tuple[str, int]:
    """What a run would do, without weights.

    Returns:
      The plan, and how many tasks could not be read.
    """
    harness, prompt = Harness(config.sets, config.include), config.worker.prompt
    priced, cells = cost(config, harness) if config.protocol else ("", len(config.cells))
    ways = f"the protocol, {cells} ways to ask" if config.protocol else ", ".join(config.cells)
    lines = [
        f"{config.worker.model.source}: {ways}",
        f"Images: {prompt.image_aspect_ratio}, border {prompt.border}; {config.worker.batch_size} "
        f"at a time; to {config.run.out}",
    ]
    around, failed = CONVERSATIONS[prompt.conversation], 0
    if around:
        lines += ["", "Every prompt stands in:", _indented(around.format(images="<image>\n", text="{prompt}"))]
    for one in harness.sets:
        task = harness.config(one)
        metrics = " + ".join(one.figures[0].metrics) or task["metric_list"][0]["metric"]
        lines += ["", f"{one.figures[0].label} ({one.task}, data {task['dataset_path']}): {metrics}"]
        lines += [f"  skipped: {harness.skipped[one.name]}"] if one.name in harness.skipped else []
        lines += [f"  note: {one.note}"] if one.note else []
        try:
            text, how = harness.asked(one)
        except CommandError as error:
            failed += 1
            lines.append(f"  no prompt can be shown: {error}")
            continue
        lines.append(f"  answers of up to {how.get('max_new_tokens', 'given')} tokens; a sample's prompt:")
        lines.append(_indented(text))
    count = len(harness.sets) - len(harness.skipped)
    lines += ["", f"{count} of {len(harness.sets)} sets would be asked, each {cells} times."]
    lines += ["", priced] if priced else []
    return "\n".join(lines), failed


def _indented(text: str) -> str:
    return "\n".join(f"    | {line}" for line in text.split("\n"))


def reproduce(config: ReproduceConfig) -> tuple[str, list[str]]:
    """Ask and mark all sets, or go on with that.

    Returns:
      The table and where everything else is; and one line about each thing that failed.

    Raises:
      CommandError: the run cannot be made; says why.
      OSError: something cannot be written, or another process writes to the folder.
    """
    harness = Harness(config.sets, config.include)
    for name, why in harness.skipped.items():
        print(f"{name} is skipped: {why}.", file=sys.stderr)
    if config.protocol:
        print(cost(config, harness)[0], file=sys.stderr)
    with Runner(config.run, "reproduce", functools.partial(ModelWorker, config.worker)) as runner:
        lines, places, _ = runner.first(calls.lines) if config.protocol else ([], [], 0)
        marks = _Marks(config, harness, runner, lines, places)
        asked = [one for one in harness.sets if one.name not in harness.skipped]
        for number, one in enumerate(asked, 1):
            print(f"{one.figures[0].label} ({number} of {len(asked)})", file=sys.stderr)
            marks.add(one)
        return _report(config, harness, runner, marks)


class _Marks:
    """Scores of sets, and the answers that they are of."""

    def __init__(
        self,
        config: ReproduceConfig,
        harness: Harness,
        runner: Runner,
        lines: Sequence[Line] = (),
        places: Sequence[AtLayer] = (),
    ):
        from experiments.lmms.model import Speaker  # which imports lmms-eval and torch

        self._config, self._harness, self._out = config, harness, runner.out
        self.lines, self.places = lines, places
        beside = {place.key for place in places}
        self._cells = list(dict.fromkeys([*config.cells, *(line.key for line in lines if line.key), *sorted(beside)]))
        settings = runner.settings(**config.worker.about())
        del settings["workers"]  # all numbers of them give the same answers
        journal = runner.journal("answers.jsonl", settings, shape=SHAPE)
        self.settings = settings | {
            "limit": config.limit,
            "harness": {name: importlib.metadata.version(name) for name in ("lmms_eval", "datasets")},
            "code_sha256": results.code_checksum("experiments/lmms"),
        }
        shape = {"set": str, "method": str, "metrics": {str: float}, "marks?": [float], "lost?": [float]}
        self._journal = runner.journal("scores.jsonl", self.settings, shape=shape)
        self._answers = Answers(runner.pool, journal, batch_size=config.worker.batch_size, beside_vanilla=beside)
        self._speaker = Speaker(self._answers, BASELINE)
        self.entries, self.failed = dict[str, dict[str, Any]](), dict[str, str]()  # by set

    @property
    def scores(self) -> dict[str, tables.Scores]:
        """Metrics by set and method."""
        return {one: {name: entry["metrics"] for name, entry in own.items()} for one, own in self.entries.items()}

    def add(self, one: Set) -> None:
        """Ask and mark a set; a method that was marked before is not marked again."""
        whole = ("metrics", "marks") if self._config.protocol else ("metrics",)
        own = [entry for entry in self._journal.entries if entry["set"] == one.name and entry.keys() >= {*whole}]
        known = {entry["method"]: entry for entry in own}
        left = [name for name in self._cells if name not in known]
        try:
            task = self._harness.load(one) if left else None
            for at in range(0, len(self._cells), GROUP):
                self._speaker.together = group = self._cells[at : at + GROUP]
                for name in (name for name in group if name in left):
                    known[name] = self._score(one, task, name, last=name == left[-1])
        except CommandError as error:
            if self._speaker.broken:  # the set is not to blame
                raise
            self.failed[one.name] = str(error)
        else:
            self.entries[one.name] = {name: known[name] for name in self._cells}

    def _score(self, one: Set, task: Any, name: str, *, last: bool) -> dict[str, Any]:
        """The entry of a method; with the `last` one of a set all answers are written down."""
        self._speaker.cell, protocol = name, self._config.protocol
        metrics, marks = self._harness.score(
            self._speaker,
            task,
            limit=self._config.limit,
            folder=self._out / "submissions",
            by_question=one.figures[0].metrics if protocol else None,
        )
        entry = {"set": one.name, "method": name, "metrics": metrics} | ({"marks": marks} if protocol else {})
        if lost := self._answers.lost(self._speaker.asked, name):
            entry["lost"] = [fmean(lost)]
        if last:
            lines = [json.dumps(self._record(request), ensure_ascii=False) + "\n" for request in self._speaker.asked]
            results.write_text(self._out / f"{one.name}.jsonl", "".join(lines))
        self._journal.add(entry)
        return entry

    def _record(self, request: Request) -> dict[str, Any]:
        record: dict[str, Any] = {"doc_id": request.doc_id, "prompt": request.text}
        if error := self._answers.errors.get(request.key):
            return record | {"error": error}
        return record | {"predictions": {name: self._answers.prediction(request, name) for name in self._cells}}

    def errors(self) -> dict[str, str]:
        """What is wrong with questions of the sets that were marked."""
        tasks = {one.task for one in self._harness.sets if one.name in self.entries}
        return {key: why for key, why in sorted(self._answers.errors.items()) if key.partition("/")[0] in tasks}


def _report(config: ReproduceConfig, harness: Harness, runner: Runner, marks: _Marks) -> tuple[str, list[str]]:
    errors = marks.errors()
    labels = {one.name: one.figures[0].label for one in harness.sets}
    notes = [f"{labels[name]}: skipped, {why}." for name, why in harness.skipped.items()]
    notes += [f"{labels[name]}: FAILED, {why}" for name, why in marks.failed.items()]
    notes += [f"{labels[one.name]}: {one.note}." for one in harness.sets if one.name in marks.entries and one.note]
    if config.limit:
        notes.append(f"Only the first {config.limit} questions of each set: no figure to compare with published ones.")
    if errors:
        notes.append(f"{len(errors)} questions could not be asked and count as wrong.")
    text, name, report = _protocol(harness, marks, notes) if config.protocol else _table(config, harness, marks, notes)
    about = {
        "model": config.worker.model.source,
        "settings": marks.settings,
        **report,
        "scores": marks.scores,
        "skipped": harness.skipped,
        "failed": marks.failed,
        "errors": [{"question": key, "error": why} for key, why in errors.items()],
    }
    runner.write(about, {name: text + "\n"})
    problems = [f"{name} failed: {why}" for name, why in marks.failed.items()]
    problems += [f"{len(errors)} questions could not be asked"] if errors else []
    where = f"All scores and settings: {runner.out / 'results.json'}; answers: NAME.jsonl beside it."
    return f"{text}\n\n{where}", problems


def _table(
    config: ReproduceConfig, harness: Harness, marks: _Marks, notes: Sequence[str]
) -> tuple[str, str, dict[str, Any]]:
    """The paper's: its text, its file, and its numbers."""
    rows = tables.rows(harness.sets, marks.scores, config.columns)
    what = "LLaVA's: arXiv 2310.03744. paper's: arXiv 2503.10501, figure 1. \"of vanilla\": of the model beside it."
    text = tables.text(rows, config.columns, [*notes, what])
    return text, "table.txt", {"rows": rows, "averages": tables.averages(rows)}


def _protocol(harness: Harness, marks: _Marks, notes: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """The protocol's."""
    marked = [one for one in harness.sets if one.name in marks.entries]
    found = protocol.protocol(marked, marks.lines, marks.places, marks.entries)
    parts = [protocol_tables.markdown(protocol_tables.of_benchmarks(found))]
    parts += [published.markdown(found["published"])] if found["published"] else []
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join(parts), "protocol.md", {"rows": [], "averages": [], "protocol": found}
