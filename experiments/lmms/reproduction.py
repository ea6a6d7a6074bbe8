"""A reproduction, from its config to its table."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from experiments.core import results
from experiments.core.config import RunConfig
from experiments.core.methods import BASELINE
from experiments.core.runner import Runner
from experiments.data.encoder import CONVERSATIONS
from experiments.evaluation.worker import ModelWorker, WorkerConfig
from experiments.lmms import tables
from experiments.lmms.answers import SHAPE, Answers
from experiments.lmms.harness import Harness
from experiments.lmms.requests import Request
from experiments.lmms.sets import Set
from models.errors import CommandError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """One reproduction."""

    run: RunConfig  # where and by whom
    worker: WorkerConfig  # the model, and how it is asked
    sets: tuple[Set, ...]
    include: tuple[Path, ...]  # folders with tasks of one's own
    columns: tuple[tables.Column, ...]  # what is compared with all tokens
    limit: int | None  # the first so many questions of each set alone

    @property
    def cells(self) -> list[str]:
        """Names of all that is asked, vanilla first."""
        return [BASELINE, *(column.name for column in self.columns)]


def dry_run(config: ReproduceConfig) -> tuple[str, int]:
    """What a run would do, without weights.

    Returns:
      The plan, and how many tasks could not be read.
    """
    harness, prompt = Harness(config.sets, config.include), config.worker.prompt
    lines = [
        f"{config.worker.model.source}: {', '.join(config.cells)}",
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
    lines += ["", f"{count} of {len(harness.sets)} sets would be asked, each {len(config.cells)} times."]
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
    with Runner(config.run, "reproduce", functools.partial(ModelWorker, config.worker)) as runner:
        marks = _Marks(config, harness, runner)
        asked = [one for one in harness.sets if one.name not in harness.skipped]
        for number, one in enumerate(asked, 1):
            print(f"{one.figures[0].label} ({number} of {len(asked)})", file=sys.stderr)
            marks.add(one)
        return _report(config, harness, runner, marks)


class _Marks:
    """Scores of sets, and the answers that they are of."""

    def __init__(self, config: ReproduceConfig, harness: Harness, runner: Runner):
        from experiments.lmms.model import Speaker  # which imports lmms-eval and torch

        self._config, self._harness, self._out = config, harness, runner.out
        settings = runner.settings(**config.worker.about())
        del settings["workers"]  # all numbers of them give the same answers
        journal = runner.journal("answers.jsonl", settings, shape=SHAPE)
        self.settings = settings | {
            "limit": config.limit,
            "harness": {name: importlib.metadata.version(name) for name in ("lmms_eval", "datasets")},
            "code_sha256": results.code_checksum("experiments/lmms"),
        }
        shape = {"set": str, "method": str, "metrics": {str: float}}
        self._journal = runner.journal("scores.jsonl", self.settings, shape=shape)
        self._answers = Answers(runner.pool, journal, batch_size=config.worker.batch_size)
        self._speaker = Speaker(self._answers, BASELINE)
        self._speaker.together = config.cells
        self.scores, self.failed = dict[str, tables.Scores](), dict[str, str]()  # by set

    def add(self, one: Set) -> None:
        """Ask and mark a set; a method that was marked before is not marked again."""
        known = {entry["method"]: entry["metrics"] for entry in self._journal.entries if entry["set"] == one.name}
        left = [name for name in self._config.cells if name not in known]
        try:
            task = self._harness.load(one) if left else None
            for name in left:
                known[name] = self._score(one, task, name)
        except CommandError as error:
            if self._speaker.broken:  # the set is not to blame
                raise
            self.failed[one.name] = str(error)
        else:
            self.scores[one.name] = {name: known[name] for name in self._config.cells}

    def _score(self, one: Set, task: Any, name: str) -> dict[str, float]:
        self._speaker.cell = name
        folder = self._out / "submissions"
        metrics = self._harness.score(self._speaker, task, limit=self._config.limit, folder=folder)
        lines = [json.dumps(self._record(request), ensure_ascii=False) + "\n" for request in self._speaker.asked]
        results.write_text(self._out / f"{one.name}.jsonl", "".join(lines))
        self._journal.add({"set": one.name, "method": name, "metrics": metrics})
        return metrics

    def _record(self, request: Request) -> dict[str, Any]:
        record: dict[str, Any] = {"doc_id": request.doc_id, "prompt": request.text}
        if error := self._answers.errors.get(request.key):
            return record | {"error": error}
        return record | {"predictions": {name: self._answers.prediction(request, name) for name in self._config.cells}}

    def errors(self) -> dict[str, str]:
        """What is wrong with questions of the sets that were marked."""
        tasks = {one.task for one in self._harness.sets if one.name in self.scores}
        return {key: why for key, why in sorted(self._answers.errors.items()) if key.partition("/")[0] in tasks}


def _report(config: ReproduceConfig, harness: Harness, runner: Runner, marks: _Marks) -> tuple[str, list[str]]:
    rows, errors = tables.rows(harness.sets, marks.scores, config.columns), marks.errors()
    labels = {one.name: one.figures[0].label for one in harness.sets}
    notes = [f"{labels[name]}: skipped, {why}." for name, why in harness.skipped.items()]
    notes += [f"{labels[name]}: FAILED, {why}" for name, why in marks.failed.items()]
    notes += [f"{labels[one.name]}: {one.note}." for one in harness.sets if one.name in marks.scores and one.note]
    if config.limit:
        notes.append(f"Only the first {config.limit} questions of each set: no figure to compare with published ones.")
    if errors:
        notes.append(f"{len(errors)} questions could not be asked and count as wrong.")
    notes.append(
        "LLaVA's: arXiv 2310.03744. paper's: arXiv 2503.10501, figure 1. \"of vanilla\": of the model beside it."
    )
    text = tables.text(rows, config.columns, notes)
    report = {
        "model": config.worker.model.source,
        "settings": marks.settings,
        "rows": rows,
        "averages": tables.averages(rows),
        "scores": marks.scores,
        "skipped": harness.skipped,
        "failed": marks.failed,
        "errors": [{"question": key, "error": why} for key, why in errors.items()],
    }
    runner.write(report, {"table.txt": text + "\n"})
    problems = [f"{name} failed: {why}" for name, why in marks.failed.items()]
    problems += [f"{len(errors)} questions could not be asked"] if errors else []
    where = f"All scores and settings: {runner.out / 'results.json'}; answers: NAME.jsonl beside it."
    return f"{text}\n\n{where}", problems
