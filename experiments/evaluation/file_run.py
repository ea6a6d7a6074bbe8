"""An evaluation on a question file, from its settings to the answers that LLaVA's scorers read."""

from __future__ import annotations

import functools
import json
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.core import results, workers
from experiments.core.calls import Call
from experiments.core.results import format_seconds, format_table
from experiments.data.ahead import MAX_PROCESSES
from experiments.data.file_questions import FileQuestions, questions_of
from experiments.evaluation.file_asker import FileAsker
from experiments.evaluation.settings import Files, Settings
from experiments.metrics.summary import BASELINE, share
from experiments.reports import html as html_report
from models.errors import CommandError
from models.io.writing import own_folder

MIN_BATCHES = 16  # batches of a worker, below which starting a process that reads them takes longer than it saves


def evaluate(settings: Settings, *, command: Sequence[str]) -> tuple[str, int]:
    """Ask all rows of a file, or go on with that.

    Args:
      settings: with `files`.
      command: what is put on record as having asked for it.

    Returns:
      The table, and where everything else is; and how many rows could not be asked.

    Raises:
      CommandError: the run cannot be made; says why.
      OSError: something cannot be written, or another process writes to the folder.
    """
    assert settings.files is not None
    questions = questions_of(settings.files)
    make = functools.partial(FileAsker, settings)
    with (
        own_folder(settings.out),
        workers.start(make, workers=settings.workers, address=settings.ray_address) as pool,
    ):
        return _evaluate(settings, settings.files, questions, pool, command)


def _evaluate(
    settings: Settings, files: Files, questions: FileQuestions, pool: workers.Pool, command: Sequence[str]
) -> tuple[str, int]:
    facts, out = dict(pool.identity), settings.out
    compared = facts.pop("methods")
    assert files.answers is not None  # the command has seen to it
    paths = {name: answer_path(files.answers, name) for name in compared}
    about = {
        "keep": settings.keep,
        "methods": list(compared),
        "border": files.border,
        "conversation": files.conversation,
        "max_new_tokens": files.max_new_tokens or questions.max_new_tokens,
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "workers": pool.count,
        "machine": workers.ask_first(pool, "machine"),
        **facts,
    }
    journal = results.Journal(out / "answers.jsonl", about, restart=settings.restart)
    if journal.entries:
        print(f"Going on from {journal.path}; --restart asks anew.", file=sys.stderr)
    records, spent = ask_all(questions, pool, journal, settings.batch_size)
    for name, path in paths.items():
        model_id = Path(settings.model).name + ("" if name == BASELINE else f"-{name}-{settings.keep}")
        lines = (json.dumps(answer) + "\n" for answer in answers(questions, records, name, model_id))
        path.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(path, "".join(lines))
    rows = summarise(questions, records, {name: tokens for name, (tokens, _) in compared.items()})
    failed = [record for record in records if "error" in record]
    report = {
        "command": list(command),
        "model": settings.model,
        "questions": str(files.questions),
        "settings": about,
        "methods": rows,
        "failed": failed,
        "samples": [record for record in records if "error" not in record],
    }
    results.write_json(out / "results.json", report)
    text = table(rows, rows_of_file=len(records), failed=len(failed))
    results.write_text(out / "table.txt", text + "\n")
    if spent["wall"]:
        results.write_json(out / "seconds.json", spent)  # by itself: all other files are the same in every run
        text += f"\n{_where_time_went(spent, pool.count)}"
    where = f"Answers: {', '.join(map(str, paths.values()))}. All settings: {out / 'results.json'}."
    if settings.report:
        where += f" To look at in a browser: {html_report.write(out)}."
    return f"{text}\n\n{where}", len(failed)


def answer_path(path: Path, method: str) -> Path:
    """Where the answers of a method go: out.jsonl -> out-tokencarve.jsonl.

    Raises:
      CommandError: the method's name cannot be part of a file's.
    """
    if not re.fullmatch(r"[\w.+@=, -]+", method):
        raise CommandError(f"method {method!r}: give it a name that a file can have")
    return path.with_name(f"{path.stem}-{method}{path.suffix}")


def ask_all(
    questions: FileQuestions, pool: workers.Pool, journal: results.Journal, batch_size: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Have all batches asked that the journal does not hold yet.

    Returns:
      A record for each row, in the file's order; and seconds of this run by what they were spent on, summed over the
      workers, with "wall" by the clock.
    """
    known = {record["sample"]: record for entry in journal.entries for record in entry["samples"]}
    parts = questions.batches(batch_size)
    total, start = sum(map(len, parts)), time.perf_counter()
    spent: Counter[str] = Counter()
    with tqdm(initial=len(known), total=total, unit=" questions", file=sys.stderr, disable=None) as bar:
        for call, found in pool.run(calls(parts, known, pool.count)):
            journal.add({"batch": call.key, "samples": found["samples"]})
            known |= {record["sample"]: record for record in found["samples"]}
            spent.update(found["seconds"])
            bar.update(len(found["samples"]))
    records = []
    for index, row in enumerate(questions.rows):
        record = known.get(index, {"sample": index, "error": row.problem})
        records.append({"sample": index, "line": row.line, "question_id": row.id} | record)
    return records, {**spent, "wall": time.perf_counter() - start if spent else 0.0}


def calls(parts: Sequence[Sequence[int]], known: Collection[int], count: int) -> list[Call]:
    """One for each batch that is not known, with those that the same of `count` workers is likely to get next."""
    todo = [(number, part) for number, part in enumerate(parts) if not set(part) <= set(known)]
    many = len(todo) >= MIN_BATCHES * count
    return [
        Call(
            number,
            methodcaller("ask", part, [one for _, one in todo[at + count :: count][:MAX_PROCESSES]] if many else ()),
        )
        for at, (number, part) in enumerate(todo)
    ]


def _where_time_went(spent: Mapping[str, float], count: int) -> str:
    """Of the time behind compiling, how much the model was busy."""
    rest = max(spent["wall"] * count - spent["compiling"], 1e-9)
    busy, waiting = (100 * spent[what] / rest for what in ("device", "waiting for input"))
    asking, compiling = format_seconds(spent["wall"]), format_seconds(spent["compiling"] / count)
    return (
        f"Asking took {asking}, of which compiling {compiling}. "
        f"Of the rest the model was busy {busy:.0f} %; waiting for images and prompts took {waiting:.1f} %."
    )


def answers(
    questions: FileQuestions, records: Sequence[Mapping[str, Any]], method: str, model_id: str
) -> list[dict[str, Any]]:
    """The lines that LLaVA's scripts write, of one method; rows that could not be asked have none."""
    lines = []
    source = questions.identity()["questions_sha256"]
    for record in records:
        if "error" in record:
            continue
        row = questions.rows[record["sample"]]
        rounds = {"round_id": row.extra["round_id"]} if "round_id" in row.extra else {}
        more = {name: value for name, value in row.extra.items() if name not in rounds}
        # The same every time, and no two alike: a run that was interrupted ends with the same files.
        answer_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{source} {model_id} {record['sample']}").hex
        lines.append(
            {"question_id": row.id}
            | rounds
            | {"prompt": row.prompt, "text": record["said"][method]}
            | more
            | {"answer_id": answer_id, "model_id": model_id, "metadata": {}}
        )
    return lines


def summarise(
    questions: FileQuestions, records: Sequence[Mapping[str, Any]], tokens: Mapping[str, int]
) -> list[dict[str, Any]]:
    """What the table says, in numbers; one entry per method.

    Args:
      questions: with what is right, where the file tells.
      records: of all rows.
      tokens: visual tokens after the cut, by method.
    """
    answered = [record for record in records if "error" not in record]
    out = []
    for name in tokens:
        marks = [questions.right(record["sample"], record["said"][name]) for record in answered]
        right = [mark for mark in marks if mark is not None]
        same = [record["said"][name] == record["said"][BASELINE] for record in answered]
        out.append(
            {
                "method": name,
                "visual_tokens": tokens[name],
                "accuracy": share(right) if right else None,
                "same_answer": sum(same) / len(same) if same else None,
            }
        )
    return out


def table(rows: Sequence[Mapping[str, Any]], *, rows_of_file: int, failed: int) -> str:
    """The table and what one has to know to read it."""
    scored = rows[0]["accuracy"] is not None
    cells = []
    for row in rows:
        accuracy = row["accuracy"]
        cells.append([row["method"], str(row["visual_tokens"])])
        if scored:
            half = 50 * (accuracy["high"] - accuracy["low"])
            cells[-1].append(f"{100 * accuracy['share']:.1f} % ± {half:.1f}")
        cells[-1].append("n/a" if row["same_answer"] is None else f"{100 * row['same_answer']:.1f} %")
    notes = [f"{rows_of_file - failed} of {rows_of_file} questions answered."]
    if scored:
        notes[0] += f" Accuracy: equal to the file's answer, of {rows[0]['accuracy']['of']}; ± is a 95 % interval."
    return "\n".join([format_table(["", "visual tokens", *["accuracy"] * scored, "same answer"], cells), "", *notes])
