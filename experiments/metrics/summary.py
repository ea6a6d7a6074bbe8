"""From the records of an evaluation to its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from experiments.core.results import format_bytes, format_seconds, format_table, paired_difference, wilson
from experiments.data.scenes import FAMILIES

BASELINE = "vanilla"


def share(right: Sequence[bool]) -> dict[str, Any]:
    """A share with its 95 % interval."""
    low, high = wilson(sum(right), len(right))
    return {"right": sum(right), "of": len(right), "share": sum(right) / len(right), "low": low, "high": high}


def rows(
    records: Sequence[Mapping[str, Any]],
    *,
    tokens: Mapping[str, tuple[int, float]],
    entries: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What the table says, in numbers; one entry per method.

    Args:
      records: one per question, with `family`, `scene`, `answer` and `said` by method.
      tokens: visual tokens after the last cut and on average over the decoder's layers, by method.
      entries: of the journal, with the times.

    Returns:
      JSON types; None where a number does not exist.
    """
    right = {name: [record["said"][name] == record["answer"] for record in records] for name in tokens}
    scenes = [record["scene"] for record in records]
    timed = [entry for entry in entries if "prefill_s" in entry]
    out = []
    for name in tokens:
        seconds = [value for entry in timed for value in entry["prefill_s"][name]]
        first = [entry["first_call_s"][name] for entry in timed if "first_call_s" in entry]
        families = {
            family: share([ok for ok, record in zip(right[name], records, strict=True) if record["family"] == family])
            for family in FAMILIES
        }
        reference = sum(right[BASELINE])
        difference, half_width = paired_difference(right[BASELINE], right[name], scenes)
        out.append(
            {
                "method": name,
                "visual_tokens": tokens[name][0],
                "layer_average": tokens[name][1],
                "accuracy": families | {"overall": share(right[name])},
                "of_vanilla": sum(right[name]) / reference if reference else None,
                "difference": difference,
                "difference_half_width": None if math.isnan(half_width) else half_width,
                "same_answer": _mean([record["said"][name] == record["said"][BASELINE] for record in records]),
                "cache_bytes": timed[0]["cache_bytes"][name],
                "prefill_s": median(seconds),
                "prefill_runs": len(seconds),
                "first_call_s": first[0] if first else None,
            }
        )
    return out


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def table(rows: Sequence[Mapping[str, Any]], *, scenes: int, settings: Mapping[str, Any]) -> str:
    """The table and what one has to know to read it."""
    header = ["", "visual tokens", *FAMILIES, "overall", "of vanilla", "same answer", "KV cache", "prefill", "speed"]
    cells = []
    for row in rows:
        overall = row["accuracy"]["overall"]
        cells.append(
            [
                row["method"],
                str(row["visual_tokens"]),
                *(_percent(row["accuracy"][family]["share"]) for family in FAMILIES),
                f"{_percent(overall['share'])} ± {50 * (overall['high'] - overall['low']):.1f}",
                _percent(row["of_vanilla"]),
                _percent(row["same_answer"]),
                format_bytes(row["cache_bytes"]),
                format_seconds(row["prefill_s"]),
                f"{rows[0]['prefill_s'] / row['prefill_s']:.2f}x",
            ]
        )
    questions, batch = rows[0]["accuracy"]["overall"]["of"], settings["batch_size"]
    differences = "; ".join(
        f"{row['method']} {100 * row['difference']:+.1f}"
        + (f" ± {100 * row['difference_half_width']:.1f}" if row["difference_half_width"] is not None else "")
        for row in rows[1:]
    )
    notes = [
        f"{questions} questions about {scenes} held-out scenes; ± is a 95 % interval.",
        f"Against vanilla on the same questions, in points: {differences}.",
        f"KV cache: keys and values held per question, room for {settings['decode_capacity']} new tokens included.",
        f"Prefill: a batch of {batch}, vision tower included, compiled before; median of {rows[0]['prefill_runs']}.",
    ]
    if len({row["visual_tokens"] for row in rows[1:]}) > 1:  # schedules, which are to be compared by their averages
        averages = ", ".join(f"{row['method']} {row['layer_average']:.1f}" for row in rows)
        notes.insert(1, f"Visual tokens: behind the last cut; on average over the decoder's layers: {averages}.")
    if settings["workers"] > 1:
        notes.append(f"Asked by {settings['workers']} workers; prefill is of the first, while the others were busy.")
    return "\n".join([format_table(header, cells), "", *notes])


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f} %"
