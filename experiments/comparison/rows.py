"""From what a comparison measured to the rows of its tables, and what one has to know to read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from experiments.comparison.cells import DOWNSAMPLED, REFERENCE, Line
from experiments.core.methods import BASELINE
from experiments.data.questions import QuestionSet
from experiments.evaluation.answers import Answers
from experiments.metrics.summary import accuracy, paired_difference


def rows(
    facts: Mapping[str, Mapping[str, Any]],
    lines: Sequence[Line],
    answers: Answers,
    questions: QuestionSet,
    *,
    costs: Mapping[str, Mapping[str, Any]],
    times: Mapping[str, Mapping[str, Sequence[float]]],
) -> list[dict[str, Any]]:
    """What the tables say, in numbers: vanilla, and one row for each line; None where a number does not exist.

    Facts (from `ModelWorker.describe`), answers, costs and times (seconds of each round) are by cell.
    """
    right, about = answers.scored(questions)
    scenes, families = ([record[name] for record in about] for name in ("scene", "family"))
    reference = {line.budget: line.key for line in lines if line.method == REFERENCE}
    measured = {}
    for key in costs.keys() & facts.keys():
        fact = facts[key]
        kl = answers.column(key, "kl")
        measured[key] = {
            **fact,
            **costs[key],
            "cell": key,
            "accuracy": accuracy(right[key], families) if about else None,
            "of_vanilla": sum(right[key]) / sum(right[BASELINE]) if sum(right[BASELINE]) else None,
            "to_vanilla": paired_difference(right[BASELINE], right[key], scenes) if about else None,
            "same_answer": answers.agreement(key),
            "same_first_token": mean(answers.column(key, "same_first")),
            "kl_mean": mean(kl),
            "kl_max": max(kl),
            "prefill_s": median(times[key]["prefill_s"]),
            "own_s": median(times[key]["own_s"]),
        }
    out = [{"budget": None, "basis": None, "why_not": "", **measured[BASELINE], "to_reference": None}]
    for line in lines:
        row = dataclasses.asdict(line)
        if (key := row.pop("key")) is not None:
            row |= measured[key] | {"to_reference": None}
            if about and (tokencarve := reference.get(line.budget)) is not None:
                row["to_reference"] = paired_difference(right[tokencarve], right[key], scenes)
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
    """What one has to know to read the tables; `length` is that of the sequence for which FLOPs are counted."""
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
    missing = [row for row in rows if row["why_not"]]
    return [
        *out,
        *sorted({f"{row['method']} at {row['budget']} ({row['basis']}): {row['why_not']}" for row in missing}),
    ]
