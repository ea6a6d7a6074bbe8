"""An evaluation from its settings to its folder: hands out the questions, and writes what comes back."""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Sequence
from operator import methodcaller
from typing import Any

from tqdm import tqdm

from experiments.core import results, workers
from experiments.core.calls import Call
from experiments.data.questions import batches
from experiments.data.scene_questions import SceneQuestions
from experiments.data.scenes import FAMILIES
from experiments.evaluation.asker import DECODE_CAPACITY, MAX_NEW_TOKENS, Asker
from experiments.evaluation.settings import Settings
from experiments.metrics import summary
from experiments.reports import gallery
from experiments.reports import html as html_report
from models.io.writing import own_folder

TIMED_BATCHES = 20  # prefill is measured on so many of the first worker's batches


def evaluate(settings: Settings, *, command: Sequence[str]) -> str:
    """Run a comparison, or go on with one.

    Args:
      settings: what to compare, and where to write.
      command: what is put on record as having asked for it.

    Returns:
      The table, and where everything else is.

    Raises:
      CommandError: the run cannot be made; says why.
      OSError: the folder cannot be written to, or another process does so.
    """
    make = functools.partial(Asker, settings)
    with (
        own_folder(settings.out),
        workers.start(make, workers=settings.workers, address=settings.ray_address) as pool,
    ):
        return _evaluate(settings, pool, command)


def _evaluate(settings: Settings, pool: workers.Pool, command: Sequence[str]) -> str:
    facts, out = dict(pool.identity), settings.out
    compared = facts.pop("methods")
    about = {
        "model_sha256": facts.pop("model_sha256"),
        "keep": settings.keep,
        "methods": list(compared),
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "max_new_tokens": MAX_NEW_TOKENS,
        "decode_capacity": DECODE_CAPACITY,
        "workers": pool.count,
        "machine": workers.ask_first(pool, "machine"),
        **facts,
    }
    journal = results.Journal(out / "answers.jsonl", about, restart=settings.restart)
    if journal.entries:
        print(f"Going on from {journal.path}; --restart measures anew.", file=sys.stderr)
    records = measure(settings, pool, journal)
    facts = workers.ask_first(pool, "describe")
    rows = [row | facts[row["method"]] for row in summary.rows(records, tokens=compared, entries=journal.entries)]
    text = summary.table(rows, scenes=settings.scenes, settings=about)
    chosen = gallery.choose(SceneQuestions(settings.scenes, settings.seed), settings.gallery)
    shown, images = workers.ask_first(pool, "look", chosen)
    gallery.save(shown, images, out)
    saved = gallery.draw(shown, images, compared, out)
    report = {
        "command": list(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": settings.model,
        "scenes": settings.scenes,
        "settings": about,
        "methods": rows,
        "gallery": shown,
        "samples": records,
    }
    results.write_json(out / "results.json", report)
    results.write_text(out / "table.txt", text + "\n")
    where = f"All answers and settings: {out / 'results.json'}. Pictures: {', '.join(map(str, saved))}."
    if settings.report:
        where += f" To look at in a browser: {html_report.write(out)}."
    return f"{text}\n\n{where}"


def measure(settings: Settings, pool: workers.Pool, journal: results.Journal) -> list[dict[str, Any]]:
    """Have all batches asked that the journal does not hold yet; gives all records, in order."""
    known = {record["sample"]: record for entry in journal.entries for record in entry["samples"]}
    have_times = {entry["batch"] for entry in journal.entries if "prefill_s" in entry}
    total = settings.scenes * len(FAMILIES)
    calls = []
    for number, indices in enumerate(batches(total, settings.batch_size)):
        if not known.keys() >= set(indices):
            # The first worker's share, so that the others have something to do too, however few batches there are.
            share, of_first = divmod(number, pool.count)
            timed = of_first == 0 and share < TIMED_BATCHES and number not in have_times
            calls.append(Call(number, methodcaller("ask", indices, timed=timed), first=timed))
    done = sum(index in known for index in range(total))
    with tqdm(initial=done, total=total, desc="compiling", unit=" questions", file=sys.stderr, disable=None) as bar:
        for call, found in pool.run(calls):
            entry = {"batch": call.key} | found
            journal.add(entry)
            fresh = {record["sample"]: record for record in entry["samples"]}
            bar.update(len(fresh.keys() - known.keys()))
            bar.set_description("asking")
            known |= fresh
    return [known[index] for index in range(total)]
