"""`experiments.eval`: methods at one count, on scenes or on the questions of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core.results import format_bytes, format_seconds
from experiments.reports.html.charts import Point, bars, points
from experiments.reports.html.page import Figure, Page, Table
from experiments.reports.html.scenes import gallery
from experiments.reports.html.words import facts, percent, with_interval
from experiments.reports.html.words import points as in_points

_UP = "right answers, %"
_AS_VANILLA = "answers as with all visual tokens, %"


def is_it(report: Mapping[str, Any]) -> bool:
    """Whether it is such a run's."""
    return "methods" in report and "samples" in report and "keep" in report.get("settings", {})


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    rows: Sequence[Mapping[str, Any]] = report["methods"]
    methods = [dict(row, key=row["method"], tokens=row["visual_tokens"]) for row in rows]
    said = {sample["sample"]: sample["said"] for sample in report["samples"]}
    about = report.get("questions") or (f"{report['scenes']} held-out scenes" if "scenes" in report else "")
    return Page(
        title="What carving costs, and what it gains",
        lead=_lead(rows, str(about)),
        highlights=_highlights(rows),
        facts=facts(report),
        tables=[_table(rows)],
        figures=_figures(rows),
        notes=_notes(rows, report["settings"]),
        gallery=gallery(report.get("gallery", ()), methods, said, folder),
    )


def _overall(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A file's accuracy has no families, and may not be known."""
    accuracy = row["accuracy"]
    return accuracy.get("overall", accuracy) if accuracy else None


def _lead(rows: Sequence[Mapping[str, Any]], about: str) -> str:
    everything, *others = rows
    if not others:
        return ""
    first, overall = others[0], _overall(others[0])
    if overall is None:
        return (
            f"With {first['visual_tokens']} of {everything['visual_tokens']} visual tokens left, {first['method']} "
            f"answers {percent(first['same_answer'])} of the questions ({about}) as the model does that sees them all."
        )
    return (
        f"With {first['visual_tokens']} of {everything['visual_tokens']} visual tokens left, {first['method']} answers "
        f"{with_interval(overall)} of {overall['of']} questions right ({about}); with all of them the model answers "
        f"{with_interval(_overall(everything))}."
    )


def _highlights(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    everything, *others = rows
    if not others:
        return []
    first = others[0]
    found = [(percent(first["visual_tokens"] / everything["visual_tokens"]), "of the visual tokens are left")]
    if first.get("of_vanilla") is not None:
        found.append((percent(first["of_vanilla"]), "of the right answers are kept"))
    if "cache_bytes" in first:
        found.append((percent(first["cache_bytes"] / everything["cache_bytes"]), "of the KV cache is needed"))
        found.append((f"{everything['prefill_s'] / first['prefill_s']:.2f} ×", "the speed of prefill"))
    return found


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    families = [name for name in rows[0]["accuracy"] or () if isinstance(rows[0]["accuracy"][name], Mapping)]
    families = [name for name in families if name != "overall"]
    measured = "prefill_s" in rows[0]
    columns = ["method", "visual tokens", *families, *(["overall"] if _overall(rows[0]) else [])]
    columns += ["against vanilla, points"] if measured else []
    columns += ["same answer"] + (["GFLOP", "KV cache", "prefill", "speed"] if measured else [])
    out = []
    for row in rows:
        cells = [row["method"], str(row["visual_tokens"])]
        cells += [percent(row["accuracy"][family]["share"]) for family in families]
        cells += [with_interval(_overall(row))] if _overall(rows[0]) else []
        cells += (
            [in_points(row["difference"], row["difference_half_width"]) if row is not rows[0] else ""]
            if measured
            else []
        )
        cells.append(percent(row["same_answer"]))
        if measured:
            cells.append(f"{row['flops'] / 1e9:.2f}" if "flops" in row else "n/a")
            cells += [format_bytes(row["cache_bytes"]), format_seconds(row["prefill_s"])]
            cells.append(f"{rows[0]['prefill_s'] / row['prefill_s']:.2f}×")
        out.append(cells)
    return Table("All methods", columns, out, strong=frozenset({1}))


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    names = [row["method"] for row in rows]
    figures = [_against(rows, "visual_tokens", "Accuracy against tokens", "visual tokens left", 1.0)]
    if "flops" in rows[0]:
        x, scale = "prefill FLOPs, % of those with all tokens", 100 / rows[0]["flops"]
        figures.append(_against(rows, "flops", "Accuracy against compute", x, scale))
    agreement = [100 * row["same_answer"] if row["same_answer"] is not None else None for row in rows]
    figures.append(
        bars(
            "Agreement with vanilla",
            "Share of the questions that a method answers word by word as the model with all visual tokens does.",
            x="same answer, %",
            names=names,
            series={"": agreement},
        )
    )
    if "prefill_s" in rows[0]:
        figures.append(
            bars(
                "Prefill time",
                "Median for a batch, vision tower included, compiled before.",
                x="ms",
                names=names,
                series={"": [1000 * row["prefill_s"] for row in rows]},
            )
        )
        figures.append(
            bars(
                "KV cache",
                "Keys and values held for a question, with room for its answer.",
                x="KiB",
                names=names,
                series={"": [row["cache_bytes"] / 1024 for row in rows]},
            )
        )
    return figures


def _against(rows: Sequence[Mapping[str, Any]], what: str, title: str, x: str, scale: float) -> Figure:
    series = {}
    for row in rows:
        overall = _overall(row)
        if overall is None:
            series[row["method"]] = [Point(scale * row[what], 100 * (row["same_answer"] or 0))]
        else:
            at = (100 * overall[name] for name in ("share", "low", "high"))
            series[row["method"]] = [Point(scale * row[what], *at)]
    known = _overall(rows[0]) is not None
    text = "Whiskers are 95 % intervals." if known else "No right answers are known of these questions."
    return points(title, text, x=x, y=_UP if known else _AS_VANILLA, series=series)


def _notes(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    found = ["± is half of a 95 % interval; differences are paired, on the same questions."]
    if "prefill_runs" in rows[0]:
        found.append(
            f"Prefill: a batch of {settings['batch_size']}, median of {rows[0]['prefill_runs']}. KV cache: per "
            f"question, with room for {settings['decode_capacity']} new tokens."
        )
    if "flops" in rows[0]:
        found.append("GFLOP: of one question's prefill, vision tower included, by matrix products alone.")
    return found
