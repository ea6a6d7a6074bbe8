"""A reproduction, from its config to its table."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
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
    """One reproduction.

    Attributes:
      run: where and by whom.
      worker: the model, and how it is asked.
      sets: what is asked.
      include: folders with tasks of one's own.
      columns: what is compared with all tokens.
      limit: the first so many questions of each set alone; None means all.
    """

    run: RunConfig
    worker: WorkerConfig
    sets: tuple[Set, ...]
    include: tuple[Path, ...]
    columns: tuple[tables.Column, ...]
    limit: int | None

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
        scores, failed = dict[str, tables.Scores](), dict[str, str]()
        asked = [one for one in harness.sets if one.name not in harness.skipped]
        for number, one in enumerate(asked, 1):
            print(f"{one.figures[0].label} ({number} of {len(asked)})", file=sys.stderr)
            try:
                scores[one.name] = marks.scores(one)
            except CommandError as error:
                if marks.speaker.broken:  # the set is not to blame
                    raise
                failed[one.name] = str(error)
        return _report(config, harness, runner, marks, scores, failed)


class _Marks:
    """Scores of sets, and the answers that they are of."""

    def __init__(self, config: ReproduceConfig, harness: Harness, runner: Runner):
        from experiments.lmms.model import Speaker  # which imports lmms-eval and torch

        self._config, self._harness, self._out = config, harness, runner.out
        settings = runner.settings(
            border=config.worker.prompt.border,
            conversation=config.worker.prompt.conversation,
            dtype=config.worker.model.dtype,
            batch_size=config.worker.batch_size,
            seed=config.worker.seed,
        )
        del settings["workers"]  # all numbers of them give the same answers
        journal = runner.journal("answers.jsonl", settings, shape=SHAPE)
        self.settings = settings | {
            "limit": config.limit,
            "harness": {name: importlib.metadata.version(name) for name in ("lmms_eval", "datasets")},
            "code_sha256": results.code_checksum("experiments/lmms"),
        }
        shape = {"set": str, "method": str, "metrics": {str: float}}
        self._journal = runner.journal("scores.jsonl", self.settings, shape=shape)
        self.answers = Answers(runner.pool, journal, batch_size=config.worker.batch_size)
        self.speaker = Speaker(self.answers, BASELINE)
        self.speaker.together = config.cells

    def scores(self, one: Set) -> tables.Scores:
        """Metrics of a set by method; those that were marked before are not marked again."""
        known = {entry["method"]: entry["metrics"] for entry in self._journal.entries if entry["set"] == one.name}
        left = [name for name in self._config.cells if name not in known]
        task = self._harness.load(one) if left else None
        for name in left:
            self.speaker.cell = name
            known[name] = self._harness.score(
                self.speaker, task, limit=self._config.limit, folder=self._out / "submissions"
            )
            lines = (json.dumps(self._record(request), ensure_ascii=False) + "\n" for request in self.speaker.asked)
            results.write_text(self._out / f"{one.name}.jsonl", "".join(lines))
            self._journal.add({"set": one.name, "method": name, "metrics": known[name]})
        return {name: known[name] for name in self._config.cells}

    def _record(self, request: Request) -> dict[str, Any]:
        record: dict[str, Any] = {"doc_id": request.doc_id, "prompt": request.text}
        if error := self.answers.errors.get(request.key):
            return record | {"error": error}
        return record | {"predictions": {name: self.answers.prediction(request, name) for name in self._config.cells}}


def _report(
    config: ReproduceConfig,
    harness: Harness,
    runner: Runner,
    marks: _Marks,
    scores: Mapping[str, tables.Scores],
    failed: Mapping[str, str],
) -> tuple[str, list[str]]:
    rows = tables.rows(harness.sets, scores, config.columns)
    tasks = {one.task for one in harness.sets if one.name in scores}
    errors = {key: why for key, why in marks.answers.errors.items() if key.partition("/")[0] in tasks}
    text = tables.text(rows, config.columns, _notes(config, harness, scores, failed, len(errors)))
    report = {
        "model": config.worker.model.source,
        "settings": marks.settings,
        "rows": rows,
        "averages": tables.averages(rows),
        "scores": scores,
        "skipped": harness.skipped,
        "failed": failed,
        "errors": [{"question": key, "error": why} for key, why in sorted(errors.items())],
    }
    runner.write(report, {"table.txt": text + "\n"})
    problems = [f"{name} failed: {why}" for name, why in failed.items()]
    problems += [f"{len(errors)} questions could not be asked"] if errors else []
    where = f"All scores and settings: {runner.out / 'results.json'}; answers: NAME.jsonl beside it."
    return f"{text}\n\n{where}", problems


def _notes(
    config: ReproduceConfig, harness: Harness, scores: Mapping[str, Any], failed: Mapping[str, str], errors: int
) -> Sequence[str]:
    labels = {one.name: one.figures[0].label for one in harness.sets}
    notes = [f"{labels[name]}: skipped, {why}." for name, why in harness.skipped.items()]
    notes += [f"{labels[name]}: FAILED, {why}" for name, why in failed.items()]
    notes += [f"{labels[one.name]}: {one.note}." for one in harness.sets if one.name in scores and one.note]
    if config.limit:
        notes.append(f"Only the first {config.limit} questions of each set: no figure to compare with published ones.")
    if errors:
        notes.append(f"{errors} questions could not be asked and count as wrong.")
    published = "LLaVA's: arXiv 2310.03744. paper's: arXiv 2503.10501, figure 1."
    return [*notes, f'{published} "of vanilla": of the model beside it.']
