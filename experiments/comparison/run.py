"""A comparison from its configuration to its folder: hands out the work, and writes what comes back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.comparison import calls, protocol, published, turns
from experiments.comparison.calls import Cost, Time
from experiments.comparison.rows import notes, rows
from experiments.core.config import RunConfig
from experiments.core.journal import Journal
from experiments.core.loading import BUCKET
from experiments.core.methods import BASELINE
from experiments.core.runner import Runner
from experiments.core.workers import Call
from experiments.data.questions import QuestionSet
from experiments.evaluation import answers as asking
from experiments.evaluation.answers import Answers, Ask
from experiments.evaluation.gallery import LookAtBatch, MapProbe
from experiments.evaluation.worker import GROUP, ModelWorker, WorkerConfig
from experiments.reports import compare_tables, figures, gallery, html, protocol_tables
from experiments.reports.compare_tables import COUNT
from models.errors import CommandError

CELLS = 8  # that are asked at a time: what an interruption costs, at most
_SECONDS = {str: float}
SHAPE = (
    asking.SHAPE,
    {"cost_of": str, "cost": {"cache_bytes": int, "xla_flops?": object}},
    {"round": {"prefill_s": _SECONDS, "own_s": _SECONDS}},
    turns.SHAPE,
)
"""Entries of the journal: answers, what a cell costs, a round of times, and answers to second questions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """One comparison."""

    run: RunConfig  # where and by whom
    worker: WorkerConfig  # what is asked, and how
    rounds: int  # in which all are timed by turns
    gallery: int  # how many questions have their images and patch maps recorded
    report: bool  # whether report.html is written


def compare(config: CompareConfig) -> tuple[str, int]:
    """Make a comparison, or go on with one.

    What is known of a cell in the folder stays: another method or budget adds its own work only.

    Returns:
      The tables and where everything else is; and how many questions could not be asked.

    Raises:
      CommandError: the run cannot be made; says why.
      OSError: the folder cannot be written to, or another process does so.
    """
    worker, questions, out = config.worker, config.worker.questions.load(), config.run.out
    with Runner(config.run, "compare", functools.partial(ModelWorker, worker)) as runner:
        facts, (lines, layers, length) = runner.first(ModelWorker.describe), runner.first(calls.lines)
        settings = runner.settings(bucket=BUCKET, **worker.about())
        journal = runner.journal("measured.jsonl", settings, shape=SHAPE)
        answers = Answers(list(facts), journal, len(questions))
        chosen = frozenset(gallery.choose(questions, config.gallery))
        parts = questions.batches(worker.batch_size)
        _ask(runner, parts, answers, chosen)
        batch = _first_asked(parts, answers)
        tabled = list(dict.fromkeys([BASELINE, *(line.key for line in lines if line.key)]))
        costs = _costs(runner, journal, tabled, batch[0])
        times = _times(runner, journal, tabled, batch, config.rounds)
        shown, images = _look(runner, parts, answers, chosen, tabled)

        judged = None
        if layers:
            smallest = min(line.budget for line in lines if line.budget is not None)
            own = [line for line in lines if (line.basis, line.budget) == (COUNT, smallest) and line.key]
            cells = [str(line.key) for line in own if "," not in line.method]  # positions do not change what is chosen
            then, second = turns.ask_second(runner, journal, answers, questions, cells, worker.batch_size)
            judged = protocol.protocol(lines, layers, answers, questions, then, second)

        sections = protocol_tables.sections(judged) if judged else []
        found = rows(facts, lines, answers, questions, costs=costs, times=times)
        order = published.agreement(found)
        failed = [{"sample": index, "error": error} for index, error in sorted(answers.errors.items())]
        said = notes(
            found,
            source=worker.questions.title,
            asked=len(answers.asked),
            failed=len(failed),
            length=length,
            batch_size=worker.batch_size,
            rounds=config.rounds,
        )
        report = {
            "model": worker.model.source,
            "source": worker.questions.title,
            "settings": settings | {"rounds": config.rounds},
            "rows": found,
            "notes": said,
            "published": order,
            "protocol": judged,
            "gallery": shown,
            "failed": failed,
            "samples": _samples(answers, questions),
        }
        parts_of_table = [
            compare_tables.markdown(found),
            *([published.markdown(order)] if order else []),
            *([protocol_tables.markdown(sections)] if sections else []),
        ]
        table = "\n\n".join([*parts_of_table, "\n".join(f"- {note}" for note in said)])
        texts = {"table.md": table + "\n", "table.csv": compare_tables.csv_text(found)}
        runner.write(report, texts)
        figures.save(figures.accuracy_by_flops(found), out / "accuracy.png")
        gallery.save(shown, images, out)
        files = ", ".join(str(out / name) for name in (*texts, "results.json", "accuracy.png"))
        where = f"With all columns: {files}."
        if config.report:
            where += f" To look at in a browser: {html.write(out)}."
    shown_here = [compare_tables.plain(found), *([protocol_tables.plain(sections)] if sections else [])]
    return "\n\n".join([*shown_here, "\n".join(said), where]), len(failed)


def _ask(runner: Runner, parts: Sequence[Sequence[int]], answers: Answers, chosen: frozenset[int]) -> None:
    """Have all questions asked that the journal does not hold yet, some cells at a time."""
    probe = MapProbe(chosen)
    names, todo = list(answers.known), list[Call]()
    for group in (names[at : at + GROUP] for at in range(0, len(names), GROUP)):
        for number, part in enumerate(parts):
            missing = [name for name in answers.missing(part, chosen) if name in group]
            for at in range(0, len(missing), CELLS):
                asked = missing[at : at + CELLS]
                todo.append(Call((number, *asked), Ask(part, asked, beside_vanilla=True, probe=probe)))
    total = sum(map(len, parts)) * len(answers.known)

    def size(entry: dict[str, Any]) -> int:
        return len(entry["indices"]) * len(entry["found"])

    bar = {"unit": " answers", "first": "compiling", "description": "asking"}
    for _, entry in runner.do(todo, total=total, initial=answers.count, size=size, **bar):
        del entry["seconds"]
        answers.add(entry)


def _first_asked(parts: Sequence[Sequence[int]], answers: Answers) -> list[int]:
    """Questions of the first batch that has some that could be asked."""
    asked = set(answers.asked)
    for part in parts:
        if own := [index for index in part if index in asked]:
            return own
    why = next(iter(answers.errors.values()), "it has none")
    raise CommandError(f"no question of the file can be asked: {why}")


def _costs(runner: Runner, journal: Journal, cells: Sequence[str], index: int) -> dict[str, dict[str, Any]]:
    costs = {entry["cost_of"]: entry["cost"] for entry in journal.entries if "cost_of" in entry}
    todo = [Call(name, Cost(index, name)) for name in cells if name not in costs]
    for call, cost in runner.do(todo, total=len(todo), first="counting", description="counting"):
        costs[str(call.key)] = cost
        journal.add({"cost_of": call.key, "cost": cost})
    return costs


def _times(
    runner: Runner, journal: Journal, cells: Sequence[str], batch: Sequence[int], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds by cell, of as many rounds as are asked for; a group of cells is timed by turns, vanilla in each."""
    whole = [entry["round"] for entry in journal.entries if "round" in entry]
    others = [name for name in cells if name != BASELINE]
    groups = [[BASELINE, *others[at : at + GROUP]] for at in range(0, max(1, len(others)), GROUP)]
    done = [[one for one in whole if one["prefill_s"].keys() >= set(own)][:rounds] for own in groups]
    group_of = {
        Call((group, number), Time(batch, own), first=True): group
        for group, own in enumerate(groups)
        for number in range(len(done[group]), rounds)
    }
    for call, found in runner.do(group_of, total=len(group_of), first="timing", description="timing"):
        journal.add({"round": found})
        done[group_of[call]].append(found)
    times: dict[str, dict[str, list[float]]] = {}
    for own, found in zip(groups, done, strict=True):
        for name in own:
            times.setdefault(name, {what: [one[what][name] for one in found] for what in ("prefill_s", "own_s")})
    return times


def _look(
    runner: Runner, parts: Sequence[Sequence[int]], answers: Answers, chosen: frozenset[int], cells: Sequence[str]
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Records of the gallery with the maps of these cells, and their images."""
    records, images = list[dict[str, Any]](), list[np.ndarray]()
    for part in parts:
        if own := chosen.intersection(part) - answers.errors.keys():
            found, seen = runner.first(LookAtBatch(part, own))
            records += found
            images += seen
    for record in records:
        number = record["sample"]
        record["maps"] = [{"cell": name} | answers.known[name][number]["map"] for name in cells]
    return records, images


def _samples(answers: Answers, questions: QuestionSet) -> list[dict[str, Any]]:
    """Records with every cell's answer, and whether it is right (None where nobody knows)."""
    right = {name: answers.scores(questions, name) for name in answers.known}
    return [
        questions.record(index)
        | {"right": {name: marks[row] for name, marks in right.items()}}
        | answers.predictions(index)
        for row, index in enumerate(answers.asked)
    ]
