"""From what a comparison measured to its rows, and from these to text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from experiments.comparison.cells import COMPUTE, COUNT, DOWNSAMPLED, GIVEN, REFERENCE, Line
from experiments.core.methods import BASELINE
from experiments.core.results import format_bytes, format_seconds, format_table
from experiments.data.questions import QuestionSet
from experiments.evaluation.answers import Answers, agreement
from experiments.metrics.summary import accuracy, paired_difference

_TITLES = {
    COUNT: "Equal count: {} visual tokens left",
    COMPUTE: "Equal compute: no more FLOPs than TokenCarve at {}",
    GIVEN: "Schedules as given",
}

_HEADS = {COUNT: "{} left", COMPUTE: "cost of {}", GIVEN: "as given"}


def rows(
    facts: Mapping[str, Mapping[str, Any]],
    lines: Sequence[Line],
    answers: Answers,
    questions: QuestionSet,
    *,
    costs: Mapping[str, Mapping[str, Any]],
    times: Mapping[str, Mapping[str, Sequence[float]]],
) -> list[dict[str, Any]]:
    """What the tables say, in numbers.

    Args:
      facts: from `ModelWorker.describe`.
      lines: of the tables.
      answers: of all cells.
      questions: that were asked.
      costs: by cell.
      times: by cell, seconds of each round.

    Returns:
      Vanilla, and one row for each line; JSON types, None where a number does not exist.
    """
    scores = {name: answers.scores(questions, name) for name in facts}
    scored = [row for row, mark in enumerate(scores[BASELINE]) if mark is not None]
    right = {name: [bool(marks[row]) for row in scored] for name, marks in scores.items()}
    about = [questions.record(answers.asked[row]) for row in scored]
    scenes, families = ([record[name] for record in about] for name in ("scene", "family"))
    reference = {line.budget: line.key for line in lines if line.method == REFERENCE}

    measured = {}
    for key, fact in facts.items():
        kl, same_first = answers.column(key, "kl"), answers.column(key, "same_first")
        measured[key] = {
            **fact,
            **costs[key],
            "cell": key,
            "accuracy": accuracy(right[key], families) if scored else None,
            "of_vanilla": sum(right[key]) / sum(right[BASELINE]) if sum(right[BASELINE]) else None,
            "to_vanilla": paired_difference(right[BASELINE], right[key], scenes) if scored else None,
            "same_answer": agreement(answers, key),
            "same_first_token": mean(same_first),
            "kl_mean": mean(kl),
            "kl_max": max(kl),
            "prefill_s": median(times[key]["prefill_s"]),
            "own_s": median(times[key]["own_s"]),
        }
    out = [{"budget": None, "basis": None, "why_not": "", **measured[BASELINE], "to_reference": None}]
    for line in lines:
        row: dict[str, Any] = {
            "budget": line.budget,
            "basis": line.basis,
            "method": line.method,
            "why_not": line.why_not,
        }
        if line.key is not None:
            row |= measured[line.key] | {"to_reference": None}
            if (tokencarve := reference.get(line.budget)) is not None and scored:
                row["to_reference"] = paired_difference(right[tokencarve], right[line.key], scenes)
        out.append(row)
    return out


def notes(
    rows: Sequence[Mapping[str, Any]],
    *,
    source: str,
    asked: int,
    failed: int,
    length: int,
    batch_size: int,
    rounds: int,
) -> list[str]:
    """What one has to know to read the tables.

    Args:
      rows: from `rows`.
      source: of the questions.
      asked: how many could be.
      failed: how many could not.
      length: of a sequence, for which FLOPs are counted.
      batch_size: of what was timed.
      rounds: of timing.
    """
    out = [
        f"{asked} questions ({source}). ± and brackets are 95 % intervals; differences are of the same questions, in "
        "points, and questions about one image do not count as independent.",
        "N left: so many visual tokens behind the cut; cost of N: as many as cost no more FLOPs than TokenCarve at N. "
        "Before a colon: how many are left in the last layer. Own time and prefill are of the last column.",
        "Layer average: visual tokens, mean over the decoder's layers. FLOPs: one question's prefill of "
        f"{length} tokens, vision tower included, by our floors (beside it XLA's count of the program, which counts a "
        "loop's body once).",
        f"Prefill: a batch of {batch_size}, compiled before; own time: the compressors alone, one image; medians of "
        f"{rounds} rounds, all by turns. KV cache: keys and values of one question's prompt.",
        "KL: of the next token's distribution from vanilla's, in nats.",
    ]
    if failed:
        out.insert(1, f"{failed} questions could not be asked.")
    if rows[0]["accuracy"] is None:
        out.insert(1, "No right answers are known: methods are in the order of agreement with vanilla.")
    elif (scored := rows[0]["accuracy"]["overall"]["of"]) < asked:
        out.insert(1, f"Right answers are known of {scored}.")
    if any(row["method"] == DOWNSAMPLED for row in rows):
        out.append(
            f"{DOWNSAMPLED}: the image at the resolution that has so many patches, enlarged again; all tokens are kept."
        )
    missing = {
        f"{row['method']} at {row['budget']} ({row['basis']}): {row['why_not']}" for row in rows if row["why_not"]
    }
    return [*out, *sorted(missing)]


def quality(row: Mapping[str, Any]) -> float:
    """The share of right answers, or of vanilla's where nobody knows the right ones."""
    return row["same_answer"] if row["accuracy"] is None else row["accuracy"]["overall"]["share"]


def parts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """A title and rows, vanilla first, for each budget and basis; the most accurate methods first."""
    out = []
    for basis, budget in dict.fromkeys((row["basis"], row["budget"]) for row in rows[1:]):
        own = [row for row in rows[1:] if (row["basis"], row["budget"]) == (basis, budget) and not row["why_not"]]
        own.sort(key=quality, reverse=True)
        out.append((_TITLES[basis].format(budget), [rows[0], *own]))
    return out


def plain(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """For the terminal: a line a method, with the share of right answers (or of vanilla's) by basis and budget."""
    columns = list(dict.fromkeys((row["basis"], row["budget"]) for row in rows[1:]))
    found = {(row["method"], row["basis"], row["budget"]): row for row in rows[1:] if not row["why_not"]}
    best = sorted(found.values(), key=quality, reverse=True)
    header = ["", *(_HEADS[basis].format(budget) for basis, budget in columns), "own time", "prefill"]
    cells = [[rows[0]["method"], *[_half(rows[0])] * len(columns), "", format_seconds(rows[0]["prefill_s"])]]
    for name in dict.fromkeys(row["method"] for row in best):
        own = [found.get((name, *column)) for column in columns]
        last = next(row for row in reversed(own) if row is not None)
        shown = ["" if row is None else f"{row['tokens']}: {_half(row)}" for row in own]
        cells.append([name, *shown, format_seconds(last["own_s"]), format_seconds(last["prefill_s"])])
    return "\n\n".join([format_table(header, cells), "\n".join(notes)])


def _half(row: Mapping[str, Any]) -> str:
    """The share with half of its interval."""
    if row["accuracy"] is None:
        return f"{100 * quality(row):.1f}"
    overall = row["accuracy"]["overall"]
    return f"{100 * overall['share']:.1f} ± {50 * (overall['high'] - overall['low']):.1f}"


def markdown(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """All columns."""
    header = [
        "method",
        "tokens",
        "layer average",
        *(rows[0]["accuracy"] or ()),
        "of vanilla",
        "vs vanilla",
        "vs tokencarve",
    ]
    header += ["same answer", "same first token", "KL mean / max", "GFLOP (XLA's)", "own time", "prefill", "KV cache"]
    blocks = []
    for title, own in parts(rows):
        lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in own]
        blocks.append(f"### {title}\n\n" + "\n".join(lines))
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in notes)])


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["method"],
        str(row["tokens"]),
        f"{row['average']:.0f}",
        *map(_share, (row["accuracy"] or {}).values()),
        "n/a" if row["of_vanilla"] is None else f"{100 * row['of_vanilla']:.1f} %",
        _points(row["to_vanilla"]),
        _points(row["to_reference"]),
        f"{100 * row['same_answer']:.1f} %",
        f"{100 * row['same_first_token']:.1f} %",
        f"{row['kl_mean']:.3f} / {row['kl_max']:.2f}",
        f"{row['flops'] / 1e9:.2f} ({_giga(row['xla_flops'])})",
        format_seconds(row["own_s"]),
        format_seconds(row["prefill_s"]),
        format_bytes(row["cache_bytes"]),
    ]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every number of every row, nested ones as `accuracy.overall.share`; RFC 4180."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, list):  # a difference
        value = dict(zip(("value", "half_width"), value, strict=True))
    if not isinstance(value, Mapping):
        return {name: value}
    inner = [_flat(part, f"{name}.{key}" if name else key) for key, part in value.items()]
    return {key: one for part in inner for key, one in part.items()}


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "n/a"
    return f"{100 * found['share']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _giga(count: float | None) -> str:
    return "n/a" if count is None else f"{count / 1e9:.2f}"


def _points(difference: Sequence[Any] | None) -> str:
    if difference is None:
        return ""
    points, half_width = difference
    return f"{100 * points:+.1f}" + ("" if half_width is None else f" ± {100 * half_width:.1f}")
