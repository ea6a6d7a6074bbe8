"""A reproduction, from its settings to its table."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence

from experiments.core import results, runner, workers
from experiments.core.journal import Journal
from experiments.data.encoder import CONVERSATIONS
from experiments.data.formats import SHORT
from experiments.evaluation.question_asker import QuestionAsker
from experiments.lmms.answers import Answers
from experiments.lmms.reproduction import tables
from experiments.lmms.reproduction.harness import Harness
from experiments.lmms.reproduction.sets import Set, named
from experiments.lmms.reproduction.settings import Settings
from experiments.lmms.requests import Request
from models.errors import CommandError
from models.io.writing import own_folder

_CODE = ("experiments/lmms", "experiments/lmms/reproduction")


def planned(settings: Settings) -> tuple[Harness, list[Set], dict[str, str]]:
    """All that can be known before anything is computed.

    Returns:
      The harness, the sets, and by their names why some cannot be asked.

    Raises:
      CommandError: see `Harness`.
    """
    sets = [named(name) for name in settings.sets]
    harness = Harness(sets, settings.include)
    skipped = {one.name: why for one in sets if (why := harness.skipped(one))}
    return harness, sets, skipped


def dry_run(settings: Settings) -> tuple[str, int]:
    """What a run would do, without weights.

    Returns:
      The plan, and how many tasks could not be read.
    """
    harness, sets, skipped = planned(settings)
    lines = [
        f"{settings.model}: {', '.join(settings.names)}",
        f"Images: {settings.asking.image_aspect_ratio}, border {settings.asking.border}; {settings.batch_size} "
        f"at a time; to {settings.out}",
    ]
    around, failed = CONVERSATIONS[settings.asking.conversation], 0
    if around:
        lines += ["", "Every prompt stands in:", _indented(around.format(images="<image>\n", text="{prompt}"))]
    for one in sets:
        config = harness.config(one)
        metrics = " + ".join(one.figures[0].metrics) or config["metric_list"][0]["metric"]
        lines += ["", f"{one.figures[0].label} ({one.task}, data {config['dataset_path']}): {metrics}"]
        if one.name in skipped:
            lines.append(f"  skipped: {skipped[one.name]}")
        if one.note:
            lines.append(f"  note: {one.note}")
        try:
            asked, how = harness.asked(one)
        except CommandError as error:
            failed += 1
            lines.append(f"  no prompt can be shown: {error}")
            continue
        lines += [
            f"  answers of up to {how.get('max_new_tokens', 'given')} tokens; a sample's prompt:",
            _indented(asked),
        ]
    count = len(sets) - len(skipped)
    lines += ["", f"{count} of {len(sets)} sets would be asked, each {len(settings.names)} times."]
    return "\n".join(lines), failed


def _indented(text: str) -> str:
    return "\n".join(f"    | {line}" for line in text.split("\n"))


def reproduce(settings: Settings, *, command: Sequence[str]) -> tuple[str, list[str]]:
    """Ask and mark all sets, or go on with that.

    Returns:
      The table and where everything else is; and one line about each thing that failed.

    Raises:
      CommandError: the run cannot be made; says why.
      OSError: something cannot be written, or another process writes to the folder.
    """
    harness, sets, skipped = planned(settings)
    for name, why in skipped.items():
        print(f"{name} is skipped: {why}.", file=sys.stderr)
    make = functools.partial(QuestionAsker, settings, settings.asking, max_new_tokens=SHORT)
    with (
        own_folder(settings.out),
        runner.start(make, workers=settings.workers, address=settings.ray_address) as pool,
    ):
        asked = [one for one in sets if one.name not in skipped]
        run = _Run(settings, harness, pool)
        scores, failed = dict[str, tables.Scores](), dict[str, str]()
        for number, one in enumerate(asked, 1):
            print(f"{one.figures[0].label} ({number} of {len(asked)})", file=sys.stderr)
            try:
                scores[one.name] = run.scores(one)
            except CommandError as error:
                if run.speaker.broken:  # that is no matter of the set
                    raise
                failed[one.name] = str(error)
        return _report(settings, command, run, sets, scores, skipped, failed)


class _Run:
    """What is open during a reproduction."""

    def __init__(self, settings: Settings, harness: Harness, pool: workers.Pool):
        from experiments.lmms.model import Speaker, about

        self._settings, self._harness = settings, harness
        self.about = about(settings, settings.asking, pool)
        restart, out = settings.restart, settings.out
        journal = Journal(out / "answers.jsonl", self.about, restart=restart)
        packages = ("lmms_eval", "datasets")
        self.told = self.about | {
            "limit": settings.limit,
            "harness": {name: importlib.metadata.version(name) for name in packages},
            "code_sha256": results.code_checksum(*_CODE),
        }
        self._marks = Journal(out / "scores.jsonl", self.told, restart=restart)
        if journal.entries:
            print(f"Going on from {out}; --restart asks anew.", file=sys.stderr)
        self.answers = Answers(pool, journal, batch_size=settings.batch_size)
        self.speaker = Speaker(self.answers, settings.names[0])
        self.speaker.together = settings.names

    def scores(self, one: Set) -> tables.Scores:
        """Metrics of a set by method; those that were marked before are not marked again."""
        known = {entry["method"]: entry["metrics"] for entry in self._marks.entries if entry["set"] == one.name}
        left = [name for name in self._settings.names if name not in known]
        task = self._harness.load(one) if left else None
        for name in left:
            self.speaker.name = name
            found = self._harness.score(
                self.speaker, task, limit=self._settings.limit, folder=self._settings.out / "submissions"
            )
            self._write_answers(one, self.speaker.asked)
            self._marks.add({"set": one.name, "method": name, "metrics": found})
            known[name] = found
        return {name: known[name] for name in self._settings.names}

    def _write_answers(self, one: Set, asked: Sequence[Request]) -> None:
        """What every method said, in the task's order: the same file whatever came in between."""
        lines = []
        for request in asked:
            error = self.answers.errors.get(request.key)
            said = {name: self.answers.said(request, name) for name in self._settings.names} if error is None else {}
            record = {"doc_id": request.doc_id, "prompt": request.text} | (
                {"error": error} if error else {"said": said}
            )
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        path = self._settings.out / f"{one.name}.jsonl"
        results.write_text(path, "".join(lines))


def _report(
    settings: Settings,
    command: Sequence[str],
    run: _Run,
    sets: Sequence[Set],
    scores: Mapping[str, tables.Scores],
    skipped: Mapping[str, str],
    failed: Mapping[str, str],
) -> tuple[str, list[str]]:
    rows = tables.rows(sets, scores, settings.columns)
    labels = {one.name: one.figures[0].label for one in sets}
    notes = [f"{labels[name]}: skipped, {why}." for name, why in skipped.items()]
    notes += [f"{labels[name]}: FAILED, {why}" for name, why in failed.items()]
    notes += [f"{labels[one.name]}: {one.note}." for one in sets if one.name in scores and one.note]
    if settings.limit:
        notes.append(
            f"Only the first {settings.limit} questions of each set: no figure to compare with published ones."
        )
    tasks = {one.task for one in sets if one.name in scores}
    errors = {key: why for key, why in run.answers.errors.items() if key.partition("/")[0] in tasks}
    if errors:
        notes.append(f"{len(errors)} questions could not be asked and count as wrong.")
    notes.append(
        "LLaVA's: arXiv 2310.03744. paper's: arXiv 2503.10501, figure 1. \"of vanilla\": of the model beside it."
    )
    report = {
        "command": list(command),
        "model": settings.model,
        "settings": run.told,
        "rows": rows,
        "averages": tables.averages(rows),
        "scores": scores,
        "skipped": skipped,
        "failed": failed,
        "errors": [{"question": key, "error": text} for key, text in sorted(errors.items())],
    }
    text = tables.text(rows, settings.columns, notes)
    results.write_json(settings.out / "results.json", report)
    results.write_text(settings.out / "table.txt", text + "\n")
    problems = [f"{name} failed: {why}" for name, why in failed.items()]
    problems += [f"{len(errors)} questions could not be asked"] if errors else []
    where = f"All scores and settings: {settings.out / 'results.json'}; answers: NAME.jsonl beside it."
    return f"{text}\n\n{where}", problems
