"""A comparison from its settings to its folder: hands out the work, and writes what comes back."""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Hashable, Sequence
from operator import methodcaller
from typing import Any

from tqdm import tqdm

from experiments import results, workers
from experiments.calls import Call
from experiments.comparison import plot, tables
from experiments.comparison.measurer import BUCKET, MAX_NEW_TOKENS, ROOM, Measurer
from experiments.comparison.settings import Settings
from experiments.evaluation.questions import batches, sample, scene_of
from experiments.scenes import FAMILIES
from models.writing import own_folder

Known = dict[str, dict[int, dict[str, Any]]]  # by cell and question


def compare(settings: Settings, *, command: Sequence[str]) -> str:
    """Run a comparison, or go on with one.

    What is known of a cell in the folder stays: another method or budget adds its own work only.

    Args:
      settings: what to compare, and where to write.
      command: what is put on record as having asked for it.

    Returns:
      The tables, and where everything else is.

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


def _compare(settings: Settings, pool: workers.Pool, command: Sequence[str]) -> str:
    about = {
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "bucket": BUCKET,
        "max_new_tokens": MAX_NEW_TOKENS,
        "room": ROOM,
        "workers": pool.count,
        "machine": _ask_first(pool, "machine"),
        **pool.identity,
    }
    grid = _ask_first(pool, "describe")
    keys = list(grid["cells"])
    journal = results.Journal(settings.out / "measured.jsonl", about, restart=settings.restart)
    if journal.entries:
        print(f"Going on from {journal.path}; --restart measures anew.", file=sys.stderr)
    known = _answers(settings, pool, journal, keys)
    costs = _costs(pool, journal, keys)
    times = _times(settings, pool, journal, keys)

    questions = [_question(index, settings.seed) for index in range(settings.scenes * len(FAMILIES))]
    rows = tables.rows(grid, known=known, questions=questions, costs=costs, times=times)
    notes = tables.notes(rows, grid=grid, settings=settings, rounds=len(next(iter(times.values()))["prefill_s"]))
    text = tables.markdown(rows, notes)
    report = {
        "command": list(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": settings.model,
        "scenes": settings.scenes,
        "settings": about | {"rounds": settings.rounds},
        "rows": rows,
        "notes": notes,
        "samples": [
            question | {"said": {key: known[key][index]["said"] for key in keys}}
            for index, question in enumerate(questions)
        ],
    }
    out = settings.out
    results.write_json(out / "results.json", report)
    results.write_text(out / "table.md", text + "\n")
    results.write_text(out / "table.csv", tables.csv_text(rows))
    plot.save(rows, out / "accuracy.png")
    files = ", ".join(str(out / name) for name in ("table.md", "table.csv", "results.json", "accuracy.png"))
    return f"{tables.plain(rows, notes)}\n\nWith all columns: {files}."


def _question(index: int, seed: int) -> dict[str, Any]:
    _, question = sample(index, seed)
    return {
        "sample": index,
        "scene": scene_of(index),
        "family": question.family,
        "question": question.text,
        "answer": question.answer,
    }


def _answers(settings: Settings, pool: workers.Pool, journal: results.Journal, keys: Sequence[str]) -> Known:
    """Have all questions asked that the journal does not hold yet, a batch of all cells at a time."""
    known: Known = {key: {} for key in keys}
    for entry in journal.entries:
        _take(known, entry)
    total = settings.scenes * len(FAMILIES)
    calls, parts = list[Call](), dict[Hashable, range](enumerate(batches(total, settings.batch_size)))
    for number, indices in parts.items():
        if missing := [key for key in keys if not known[key].keys() >= set(indices)]:
            calls.append(Call(number, methodcaller("ask", indices, missing)))
    done = sum(index in known[key] for key in keys for index in range(total))
    with tqdm(
        initial=done, total=total * len(keys), desc="compiling", unit=" answers", file=sys.stderr, disable=None
    ) as bar:
        for call, found in pool.run(calls):
            entry = {"indices": list(parts[call.key]), "found": found}
            journal.add(entry)
            bar.update(_take(known, entry))
            bar.set_description("asking")
    return known


def _take(known: Known, entry: dict[str, Any]) -> int:
    """Note down what an entry of the journal holds of answers; gives how many are new."""
    new = 0
    for key, found in entry.get("found", {}).items():
        if key in known:
            for row, index in enumerate(entry["indices"]):
                new += index not in known[key]
                known[key][index] = {name: values[row] for name, values in found.items()}
    return new


def _costs(pool: workers.Pool, journal: results.Journal, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    costs = {entry["cost_of"]: entry["cost"] for entry in journal.entries if "cost_of" in entry}
    calls = [Call(key, methodcaller("cost", key)) for key in keys if key not in costs]
    for call, cost in _shown(pool.run(calls), "counting", len(calls)):
        journal.add({"cost_of": call.key, "cost": cost})
        costs[str(call.key)] = cost
    return costs


def _times(
    settings: Settings, pool: workers.Pool, journal: results.Journal, keys: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Seconds by cell, of as many rounds as are asked for; all cells of a round are timed one after the other."""
    rounds = [
        entry["round"]
        for entry in journal.entries
        if "round" in entry and entry["round"]["prefill_s"].keys() >= set(keys)
    ]
    batch = next(batches(settings.scenes * len(FAMILIES), settings.batch_size))
    calls = [
        Call(number, methodcaller("time", batch, keys), first=True) for number in range(len(rounds), settings.rounds)
    ]
    for _, found in _shown(pool.run(calls), "timing", len(calls)):
        journal.add({"round": found})
        rounds.append(found)
    return {key: {name: [found[name][key] for found in rounds] for name in ("prefill_s", "own_s")} for key in keys}


def _shown(found: Any, what: str, total: int) -> Any:
    return tqdm(found, desc=what, total=total, file=sys.stderr, disable=None if total else True)


def _ask_first(pool: workers.Pool, method: str) -> Any:
    """One question to the first worker."""
    ((_, found),) = pool.run([Call(method, methodcaller(method), first=True)])
    return found
