"""`eval` on scenes: what is asked, and the table with accuracy by family, speed and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from experiments.core.methods import BASELINE
from experiments.core.results import format_bytes, format_seconds
from experiments.core.runner import Runner
from experiments.core.workers import Call
from experiments.data.questions import QuestionSet
from experiments.evaluation.answers import Answers, Ask
from experiments.metrics.summary import accuracy, paired_difference
from experiments.reports import tables
from experiments.reports.tables import Column, percent, points, ratio, with_interval

TIMED_BATCHES = 20  # prefill is measured on so many of the first worker's batches


def ask(runner: Runner, questions: QuestionSet, answers: Answers, *, batch_size: int) -> None:
    """Have all batches asked that the journal does not hold yet, and some of them timed."""
    cells, count, calls = list(answers.known), runner.pool.count, []
    have_times = {entry["indices"][0] for entry in answers.journal.entries if "prefill_s" in entry}
    for number, part in enumerate(questions.batches(batch_size)):
        if answers.missing(part):
            # The first worker's share, so that the others have something to do too, however few batches there are.
            share, of_first = divmod(number, count)
            timed = of_first == 0 and share < TIMED_BATCHES and part[0] not in have_times
            calls.append(Call(number, Ask(part, cells, timed=timed), first=timed))
    done = answers.count // len(cells)
    for _, entry in runner.do(
        calls,
        total=len(questions),
        initial=done,
        unit=" questions",
        first="compiling",
        description="asking",
        size=lambda entry: len(entry["indices"]),
    ):
        del entry["seconds"]
        answers.add(entry)


def rows(answers: Answers, questions: QuestionSet, facts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the table says, in numbers; one entry per method of `facts`, see `ModelWorker.describe`."""
    right, about = answers.scored(questions)
    families, scenes = ([record[name] for record in about] for name in ("family", "scene"))
    timed = [entry for entry in answers.journal.entries if "prefill_s" in entry]
    first: dict[str, float] = next((entry["first_call_s"] for entry in timed if "first_call_s" in entry), {})
    out = []
    for name, fact in facts.items():
        seconds, reference = [entry["prefill_s"][name] for entry in timed], sum(right[BASELINE])
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
                "same_answer": answers.agreement(name),
                "cache_bytes": timed[0]["cache_bytes"][name],
                "prefill_s": median(seconds),
                "prefill_runs": len(seconds),
                "first_call_s": first.get(name),
                **{key: fact[key] for key in ("place", "reads", "paper", "flops")},
            }
        )
    return out


def table(rows: Sequence[Mapping[str, Any]], *, title: str, settings: Mapping[str, Any]) -> str:
    """The table and what one has to know to read it."""
    vanilla, *others = rows
    families = [name for name in vanilla["accuracy"] if name != "overall"]
    columns: list[Column] = [
        ("", lambda row: row["method"]),
        ("visual tokens", lambda row: str(row["visual_tokens"])),
        *((name, lambda row, name=name: percent(row["accuracy"][name]["share"])) for name in families),
        ("overall", lambda row: with_interval(row["accuracy"]["overall"])),
        ("of vanilla", lambda row: percent(row["of_vanilla"])),
        ("same answer", lambda row: percent(row["same_answer"])),
        ("KV cache", lambda row: format_bytes(row["cache_bytes"])),
        ("prefill", lambda row: format_seconds(row["prefill_s"])),
        ("speed", lambda row: f"{ratio(vanilla['prefill_s'], row['prefill_s']):.2f}x"),
    ]
    differences = (f"{row['method']} {points(row['difference'], row['difference_half_width'])}" for row in others)
    notes = [
        f"{vanilla['accuracy']['overall']['of']} questions about {title}; ± is a 95 % interval.",
        f"Against vanilla on the same questions, in points: {'; '.join(differences)}.",
        f"KV cache: keys and values held per question, room for {settings['decode_capacity']} new tokens included.",
        f"Prefill: a batch of {settings['batch_size']}, vision tower included, compiled before; median of "
        f"{vanilla['prefill_runs']}.",
    ]
    if len({row["visual_tokens"] for row in others}) > 1:  # schedules, which are to be compared by their averages
        averages = ", ".join(f"{row['method']} {row['layer_average']:.1f}" for row in rows)
        notes.insert(1, f"Visual tokens: behind the last cut; on average over the decoder's layers: {averages}.")
    if settings["workers"] > 1:
        notes.append(f"Asked by {settings['workers']} workers; prefill is of the first, while the others were busy.")
    return "\n".join([tables.plain(tables.cells(columns, rows)), "", *notes])
