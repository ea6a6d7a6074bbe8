"""`eval` on a question file: what is asked, the answers that LLaVA's scorers read, and a table of agreement."""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core import results
from experiments.core.methods import BASELINE
from experiments.core.preprocessing import size_of
from experiments.core.results import format_seconds
from experiments.core.runner import Runner
from experiments.core.workers import Call
from experiments.data.ahead import MAX_PROCESSES
from experiments.data.questions import QuestionSet
from experiments.evaluation.answers import Answers, Ask
from experiments.metrics.summary import share
from experiments.reports import tables
from experiments.reports.tables import Column, percent, with_interval
from models.errors import CommandError

MIN_BATCHES = 16  # batches of a worker, below which starting a process that reads them takes longer than it saves


def ask(runner: Runner, questions: QuestionSet, answers: Answers, *, batch_size: int) -> dict[str, float]:
    """Have all batches asked that the journal does not hold yet.

    Returns:
      Seconds of this run by what they were spent on, summed over the workers, with "wall" by the clock.
    """
    parts, cells, count = questions.batches(batch_size), list(answers.known), runner.pool.count
    todo, calls = [part for part in parts if answers.missing(part)], []
    many = len(todo) >= MIN_BATCHES * count
    for number, part in enumerate(todo):  # with those that the same worker is likely to get next
        then = todo[number + count :: count][:MAX_PROCESSES] if many else ()
        calls.append(Call(tuple(part), Ask(part, cells, then=then)))
    total, start, spent = sum(map(len, parts)), time.perf_counter(), Counter[str]()
    known = answers.count // len(cells) + len(answers.errors)

    def size(entry: Mapping[str, Any]) -> int:
        return len(entry["indices"]) + len(entry["errors"])

    for _, entry in runner.do(calls, total=total, initial=known, unit=" questions", size=size):
        spent.update(entry.pop("seconds"))
        answers.add(entry)
    return {**spent, "wall": time.perf_counter() - start if spent else 0.0}


def sizes(questions: QuestionSet) -> Iterator[tuple[int, int]]:
    """Width and height of one image after the other, of all that can be read."""
    for index in range(len(questions)):
        with contextlib.suppress(CommandError):
            yield from map(size_of, questions.sample(index).images)


def check_names(methods: Iterable[str]) -> None:
    """Raise CommandError for a method whose name cannot be part of a file's."""
    for method in methods:
        if not re.fullmatch(r"[\w.+@=, -]+", method):
            raise CommandError(f"method {method!r}: give it a name that a file can have")


def write(path: Path, questions: QuestionSet, answers: Answers, *, model: str, keep: float | int) -> list[Path]:
    """Write the answers of each method, the same ones whatever came in between: out.jsonl -> out-tokencarve.jsonl.

    Rows that could not be asked have no answer; `model` is a name. Returns the files.
    """
    paths, source = [], questions.identity().get("questions_sha256", type(questions).__name__)
    for method in answers.known:
        model_id = model + ("" if method == BASELINE else f"-{method}-{keep}")
        lines = []
        for index, text in zip(answers.asked, answers.column(method), strict=True):
            # No two alike, and the same every time: a run that was interrupted ends with the same files.
            name = f"{source} {model_id} {index}"
            about = {"answer_id": uuid.uuid5(uuid.NAMESPACE_OID, name).hex, "model_id": model_id, "metadata": {}}
            lines.append(json.dumps(questions.scorer_line(index, text) | about) + "\n")
        paths.append(path.with_name(f"{path.stem}-{method}{path.suffix}"))
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        results.write_text(paths[-1], "".join(lines))
    return paths


def rows(answers: Answers, questions: QuestionSet, facts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the table says, in numbers; one entry per method. Arguments as for `scenes.rows`."""
    right, _ = answers.scored(questions)
    return [
        {
            "method": name,
            "visual_tokens": fact["tokens"],
            "accuracy": share(right[name]) if right[name] else None,
            "same_answer": answers.agreement(name),
        }
        for name, fact in facts.items()
    ]


def records(answers: Answers, questions: QuestionSet) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of the rows that were answered, with their predictions, and of the others, with what is wrong."""
    asked = answers.asked
    left = sorted({*range(len(questions))}.difference(asked))
    return (
        [questions.place(index) | answers.predictions(index) for index in asked],
        [questions.place(index) | {"error": answers.errors.get(index, questions.problem(index))} for index in left],
    )


def table(rows: Sequence[Mapping[str, Any]], *, total: int, failed: int, square: bool) -> str:
    """The table and what one has to know to read it; without `square`, images have any number of visual tokens."""
    columns: list[Column] = [
        ("", lambda row: row["method"]),
        ("visual tokens", lambda row: str(row["visual_tokens"])),
        ("same answer", lambda row: percent(row["same_answer"])),
    ]
    note = f"{total - failed} of {total} questions answered."
    if not square:
        note += " Visual tokens are those of the first question."
    if accuracy := rows[0]["accuracy"]:
        columns.insert(2, ("accuracy", lambda row: with_interval(row["accuracy"])))
        note += f" Accuracy: equal to the file's answer, of {accuracy['of']}; ± is a 95 % interval."
    return "\n".join([tables.plain(tables.cells(columns, rows)), "", note])


def where_time_went(spent: Mapping[str, float], count: int) -> str:
    """Of the time behind compiling, how much the model was busy."""
    rest = max(spent["wall"] * count - spent["compiling"], 1e-9)
    busy, waiting = (100 * spent[what] / rest for what in ("device", "waiting for input"))
    asking, compiling = format_seconds(spent["wall"]), format_seconds(spent["compiling"] / count)
    return (
        f"Asking took {asking}, of which compiling {compiling}. "
        f"Of the rest the model was busy {busy:.0f} %; waiting for images and prompts took {waiting:.1f} %."
    )
