"""`eval` on scenes: what is asked, and the table with accuracy by family, speed and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from experiments.core.methods import BASELINE
from experiments.core.results import format_bytes, format_seconds, format_table
from experiments.core.runner import Runner
from experiments.core.workers import Call
from experiments.data.questions import QuestionSet
from experiments.evaluation.answers import Answers, Ask, agreement
from experiments.metrics.summary import accuracy, paired_difference

TIMED_BATCHES = 20  # prefill is measured on so many of the first worker's batches


def ask(runner: Runner, questions: QuestionSet, answers: Answers, *, batch_size: int) -> None:
    """Have all batches asked that the journal does not hold yet, and some of them timed."""
    cells, count = list(answers.known), runner.pool.count
    have_times = {entry["indices"][0] for entry in answers.journal.entries if "prefill_s" in entry}
    calls = []
    for number, part in enumerate(questions.batches(batch_size)):
        if answers.missing(part):
            # The first worker's share, so that the others have something to do too, however few batches there are.
            share, of_first = divmod(number, count)
            timed = of_first == 0 and share < TIMED_BATCHES and part[0] not in have_times
            calls.append(Call(number, Ask(part, cells, timed=timed), first=timed))
    done = answers.count // len(cells)
    bar = {"unit": " questions", "first": "compiling", "description": "asking"}
    for _, entry in runner.do(
        calls, total=len(questions), initial=done, size=lambda entry: len(entry["indices"]), **bar
    ):
        del entry["seconds"]
        answers.add(entry)


def rows(answers: Answers, questions: QuestionSet, facts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the table says, in numbers; one entry per method.

    Args:
      answers: to all questions, with the times in their journal.
      questions: that were asked.
      facts: from `ModelWorker.describe`.

    Returns:
      JSON types; None where a number does not exist.
    """
    about = [questions.record(index) for index in answers.asked]
    families, scenes = ([record[name] for record in about] for name in ("family", "scene"))
    right = {name: [bool(mark) for mark in answers.scores(questions, name)] for name in facts}
    timed = [entry for entry in answers.journal.entries if "prefill_s" in entry]
    out = []
    for name, fact in facts.items():
        seconds = [entry["prefill_s"][name] for entry in timed]
        first = [entry["first_call_s"][name] for entry in timed if "first_call_s" in entry]
        reference = sum(right[BASELINE])
        difference, half_width = paired_difference(right[BASELINE], right[name], scenes)
        out.append(
            {
                "method": name,
                "visual_tokens": fact["tokens"],
                "layer_average": fact["average"],
                "accuracy": accuracy(right[name], families),
                "of_vanilla": sum(right[name]) / reference if reference else None,
                "difference": difference,
                "difference_half_width": half_width,
                "same_answer": agreement(answers, name),
                "cache_bytes": timed[0]["cache_bytes"][name],
                "prefill_s": median(seconds),
                "prefill_runs": len(seconds),
                "first_call_s": first[0] if first else None,
                **{key: fact[key] for key in ("place", "reads", "paper", "flops")},
            }
        )
    return out


def table(rows: Sequence[Mapping[str, Any]], *, title: str, settings: Mapping[str, Any]) -> str:
    """The table and what one has to know to read it."""
    families = [name for name in rows[0]["accuracy"] if name != "overall"]
    header = ["", "visual tokens", *families, "overall", "of vanilla", "same answer", "KV cache", "prefill", "speed"]
    cells = []
    for row in rows:
        overall = row["accuracy"]["overall"]
        cells.append(
            [
                row["method"],
                str(row["visual_tokens"]),
                *(percent(row["accuracy"][family]["share"]) for family in families),
                f"{percent(overall['share'])} ± {50 * (overall['high'] - overall['low']):.1f}",
                percent(row["of_vanilla"]),
                percent(row["same_answer"]),
                format_bytes(row["cache_bytes"]),
                format_seconds(row["prefill_s"]),
                f"{rows[0]['prefill_s'] / row['prefill_s']:.2f}x",
            ]
        )
    differences = "; ".join(
        f"{row['method']} {100 * row['difference']:+.1f}"
        + (f" ± {100 * row['difference_half_width']:.1f}" if row["difference_half_width"] is not None else "")
        for row in rows[1:]
    )
    notes = [
        f"{rows[0]['accuracy']['overall']['of']} questions about {title}; ± is a 95 % interval.",
        f"Against vanilla on the same questions, in points: {differences}.",
        f"KV cache: keys and values held per question, room for {settings['decode_capacity']} new tokens included.",
        f"Prefill: a batch of {settings['batch_size']}, vision tower included, compiled before; median of "
        f"{rows[0]['prefill_runs']}.",
    ]
    if len({row["visual_tokens"] for row in rows[1:]}) > 1:  # schedules, which are to be compared by their averages
        averages = ", ".join(f"{row['method']} {row['layer_average']:.1f}" for row in rows)
        notes.insert(1, f"Visual tokens: behind the last cut; on average over the decoder's layers: {averages}.")
    if settings["workers"] > 1:
        notes.append(f"Asked by {settings['workers']} workers; prefill is of the first, while the others were busy.")
    return "\n".join([format_table(header, cells), "", *notes])


def percent(value: float | None) -> str:
    """0.125 -> "12.5 %"; "n/a" for None."""
    return "n/a" if value is None else f"{100 * value:.1f} %"
