"""A comparison from its settings to its folder: hands out the work, and writes what comes back."""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Sequence
from operator import methodcaller
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.comparison import tables
from experiments.comparison.measurer import Measurer
from experiments.comparison.settings import Settings
from experiments.core import results, workers
from experiments.core.calls import Call
from experiments.core.loading import BUCKET
from experiments.data.questions import QuestionSet
from experiments.reports import figures, gallery
from experiments.reports import html as html_report
from models.io.writing import own_folder

CELLS = 8  # that are asked at a time: what an interruption costs, at most


def compare(settings: Settings, *, command: Sequence[str]) -> tuple[str, int]:
    """Run a comparison, or go on with one.

    What is known of a cell in the folder stays: another method or budget adds its own work only.

    Args:
      settings: what to compare, and where to write.
      command: what is put on record as having asked for it.

    Returns:
      The tables, and where everything else is; and how many questions could not be asked.

    Raises:
      CommandError: the run cannot be made; says why.
      OSError: the folder cannot be written to, or another process does so.
    """
    make = functools.partial(Measurer, settings)
    with (
        own_folder(settings.out),
        workers.start(make, workers=settings.workers, address=settings.ray_address) as pool,
    ):
        return _compare(settings, pool, command)


def _compare(settings: Settings, pool: workers.Pool, command: Sequence[str]) -> tuple[str, int]:
    about = {
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "bucket": BUCKET,
        "border": "keep" if settings.files is None else settings.files.border,
        "conversation": "checkpoint" if settings.files is None else settings.files.conversation,
        "workers": pool.count,
        "machine": workers.ask_first(pool, "machine"),
        **pool.identity,
    }
    grid, questions = workers.ask_first(pool, "describe"), settings.questions()
    keys = list(grid["cells"])
    journal = results.Journal(settings.out / "measured.jsonl", about, restart=settings.restart)
    if journal.entries:
        print(f"Going on from {journal.path}; --restart measures anew.", file=sys.stderr)
    chosen = gallery.choose(questions, settings.gallery)
    answers = Answers(keys, chosen)
    _ask_all(settings, questions, pool, journal, answers)
    samples, known = answers.samples(questions), answers.known
    asked = {sample["sample"] for sample in samples}
    batch = next(own for part in questions.batches(settings.batch_size) if (own := [i for i in part if i in asked]))
    costs = _costs(pool, journal, keys, batch)
    times = _times(settings.rounds, pool, journal, keys, batch)

    shown, images = _gallery(settings, questions, pool, chosen, answers)
    rows = tables.rows(grid, known=known, questions=samples, costs=costs, times=times)
    source = f"{settings.scenes} held-out scenes" if settings.files is None else settings.files.questions.name
    notes = tables.notes(
        rows,
        source=source,
        asked=len(samples),
        failed=len(answers.errors),
        length=grid["length"],
        batch_size=settings.batch_size,
        rounds=settings.rounds,
    )
    report = {
        "command": list(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": settings.model,
        "source": source,
        "settings": about | {"rounds": settings.rounds},
        "rows": rows,
        "notes": notes,
        "gallery": shown,
        "failed": [{"sample": index, "error": error} for index, error in sorted(answers.errors.items())],
        "samples": [
            sample | {"said": {key: known[key][sample["sample"]]["said"] for key in keys}} for sample in samples
        ],
    }
    out = settings.out
    results.write_json(out / "results.json", report)
    results.write_text(out / "table.md", tables.markdown(rows, notes) + "\n")
    results.write_text(out / "table.csv", tables.csv_text(rows))
    figures.save(figures.accuracy_by_flops(rows), out / "accuracy.png")
    gallery.save(shown, images, out)
    files = ", ".join(str(out / name) for name in ("table.md", "table.csv", "results.json", "accuracy.png"))
    where = f"With all columns: {files}."
    if settings.report:
        where += f" To look at in a browser: {html_report.write(out)}."
    return f"{tables.plain(rows, notes)}\n\n{where}", len(answers.errors)


def _gallery(
    settings: Settings, questions: QuestionSet, pool: workers.Pool, chosen: Sequence[int], answers: Answers
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Records of the gallery with the maps of all cells, and their images."""
    records, images = list[dict[str, Any]](), list[np.ndarray]()
    for part in questions.batches(settings.batch_size):
        if not answers.errors.keys() >= set(part) & set(chosen):
            found, seen = workers.ask_first(pool, "look", part)
            records += found
            images += seen
    for record in records:
        record["maps"] = [{"cell": key} | found[record["sample"]]["map"] for key, found in answers.known.items()]
    return records, images


class Answers:
    """What is known so far.

    Args:
      keys: of all cells.
      chosen: questions of the gallery, of which maps are wanted too.

    Attributes:
      known: what each cell said, by key and question.
      errors: of questions that cannot be asked.
    """

    def __init__(self, keys: Sequence[str], chosen: Sequence[int] = ()):
        self._chosen = frozenset(chosen)
        self.known: dict[str, dict[int, dict[str, Any]]] = {key: {} for key in keys}
        self.errors: dict[int, str] = {}

    def take(self, entry: dict[str, Any]) -> None:
        """Note down what an entry of the journal holds."""
        for index, error in entry.get("errors", {}).items():
            self.errors[int(index)] = error  # JSON's keys are texts
        for key in self.known.keys() & entry.get("found", {}).keys():
            for row, index in enumerate(entry["indices"]):
                self.known[key][index] = {name: values[row] for name, values in entry["found"][key].items()}

    def missing(self, indices: Sequence[int]) -> list[str]:
        """The cells that have not been asked yet about all of these questions."""
        wanted = set(indices) - self.errors.keys()
        mapped = wanted & self._chosen
        return [
            key
            for key, found in self.known.items()
            if not found.keys() >= wanted or any(found[index]["map"] is None for index in mapped)
        ]

    @property
    def count(self) -> int:
        """How many answers there are."""
        return sum(map(len, self.known.values()))

    def samples(self, questions: QuestionSet) -> list[dict[str, Any]]:
        """All questions that were asked, in order, with what is right of them by cell (None where nobody knows)."""
        out = []
        for index in sorted(next(iter(self.known.values()))):
            sample = questions.sample(index)
            right = {key: questions.right(index, found[index]["said"]) for key, found in self.known.items()}
            out.append(
                {
                    "sample": index,
                    "id": sample.id,
                    "scene": sample.group,
                    "family": sample.family,
                    "question": sample.text,
                    "answer": sample.answer,
                    "right": right,
                }
            )
        return out


def _ask_all(
    settings: Settings, questions: QuestionSet, pool: workers.Pool, journal: results.Journal, answers: Answers
) -> None:
    """Have all questions asked that the journal does not hold yet, some cells at a time."""
    for entry in journal.entries:
        answers.take(entry)
    parts = questions.batches(settings.batch_size)
    calls = [
        Call((number, at), methodcaller("ask", part, missing[at : at + CELLS]))
        for number, part in enumerate(parts)
        for missing in [answers.missing(part)]
        for at in range(0, len(missing), CELLS)
    ]
    total = sum(map(len, parts)) * len(answers.known)
    with tqdm(
        initial=answers.count, total=total, desc="compiling", unit=" answers", file=sys.stderr, disable=None
    ) as bar:
        for _, found in pool.run(calls):
            journal.add(found)
            before = answers.count
            answers.take(found)
            bar.update(answers.count - before)
            bar.set_description("asking")


def _costs(
    pool: workers.Pool, journal: results.Journal, keys: Sequence[str], batch: Sequence[int]
) -> dict[str, dict[str, Any]]:
    costs = {entry["cost_of"]: entry["cost"] for entry in journal.entries if "cost_of" in entry}
    calls = [Call(key, methodcaller("cost", batch, key)) for key in keys if key not in costs]
    for call, cost in _shown(pool.run(calls), "counting", len(calls)):
        journal.add({"cost_of": call.key, "cost": cost})
        costs[str(call.key)] = cost
    return costs


def _times(
    rounds: int, pool: workers.Pool, journal: results.Journal, keys: Sequence[str], batch: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Seconds by cell, of as many rounds as are asked for; all cells of a round are timed one after the other."""
    whole = [entry["round"] for entry in journal.entries if "round" in entry]
    done = [one for one in whole if one["prefill_s"].keys() >= set(keys)][:rounds]
    calls = [Call(number, methodcaller("time", batch, keys), first=True) for number in range(len(done), rounds)]
    for _, found in _shown(pool.run(calls), "timing", len(calls)):
        journal.add({"round": found})
        done.append(found)
    return {key: {name: [found[name][key] for found in done] for name in ("prefill_s", "own_s")} for key in keys}


def _shown(found: Any, what: str, total: int) -> Any:
    return tqdm(found, desc=what, total=total, file=sys.stderr, disable=None if total else True)
