"""`experiments.eval`: methods at one count, on scenes or on the questions of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core.results import format_bytes, format_seconds
from experiments.reports.html.charts import AS_VANILLA, RIGHT, accuracy_at, bars, family, overall, points
from experiments.reports.html.page import Figure, Page, Table, facts
from experiments.reports.html.scenes import gallery
from experiments.reports.tables import Column, percent, ratio, with_interval
from experiments.reports.tables import points as in_points

Rows = Sequence[Mapping[str, Any]]


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    rows: Rows = report["methods"]
    about = report.get("questions") or (f"{report['scenes']} held-out scenes" if "scenes" in report else "")
    return Page(
        title="What carving costs, and what it gains",
        lead=_lead(rows, str(about)),
        highlights=_highlights(rows),
        facts=facts(report),
        tables=[Table.of("All methods", _columns(rows), rows, strong={1})],
        figures=_figures(rows),
        notes=_notes(rows, report["settings"]),
        gallery=gallery(report, [dict(row, key=row["method"], tokens=row["visual_tokens"]) for row in rows], folder),
    )


def _lead(rows: Rows, about: str) -> str:
    everything, *others = rows
    if not others:
        return ""
    first, found = others[0], overall(others[0])
    left = (
        f"With {first['visual_tokens']} of {everything['visual_tokens']} visual tokens left, {first['method']} answers"
    )
    if found is None:
        return (
            f"{left} {percent(first['same_answer'])} of the questions ({about}) as the model does that sees them all."
        )
    return (
        f"{left} {with_interval(found)} of {found['of']} questions right ({about}); with all of them the model answers "
        f"{with_interval(overall(everything))}."
    )


def _highlights(rows: Rows) -> list[tuple[str, str]]:
    everything, *others = rows
    if not others:
        return []

    def share(what: str) -> str:
        return percent(ratio(first[what], everything[what]))

    first = others[0]
    found = [(share("visual_tokens"), "of the visual tokens are left")]
    if first.get("of_vanilla") is not None:
        found.append((percent(first["of_vanilla"]), "of the right answers are kept"))
    if "cache_bytes" in first:
        found.append((share("cache_bytes"), "of the KV cache is needed"))
        found.append((f"{ratio(everything['prefill_s'], first['prefill_s']):.2f} ×", "the speed of prefill"))
    return found


def _columns(rows: Rows) -> list[Column]:
    everything = rows[0]
    accuracy = everything["accuracy"] or {}
    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("visual tokens", lambda row: str(row["visual_tokens"])),
    ]
    columns += [family(name) for name, own in accuracy.items() if isinstance(own, Mapping) and name != "overall"]
    if accuracy:
        columns.append(("overall", lambda row: with_interval(overall(row))))
    same: Column = ("same answer", lambda row: percent(row["same_answer"]))
    if "prefill_s" not in everything:
        return [*columns, same]

    def difference(row: Mapping[str, Any]) -> str:
        return "" if row is everything else in_points(row["difference"], row["difference_half_width"])

    return [
        *columns,
        ("against vanilla, points", difference),
        same,
        ("GFLOP", lambda row: f"{row['flops'] / 1e9:.2f}" if "flops" in row else "n/a"),
        ("KV cache", lambda row: format_bytes(row["cache_bytes"])),
        ("prefill", lambda row: format_seconds(row["prefill_s"])),
        ("speed", lambda row: f"{ratio(everything['prefill_s'], row['prefill_s']):.2f}×"),
    ]


def _figures(rows: Rows) -> list[Figure]:
    names, known = [row["method"] for row in rows], overall(rows[0]) is not None
    text = "Whiskers are 95 % intervals." if known else "No right answers are known of these questions."

    def against(title: str, x: str, what: str, scale: float = 1) -> Figure:
        series = {row["method"]: [accuracy_at(scale * row[what], row)] for row in rows}
        return points(title, text, x=x, y=RIGHT if known else AS_VANILLA, series=series)

    def each(title: str, text: str, x: str, what: str, scale: float) -> Figure:
        values = [None if row[what] is None else scale * row[what] for row in rows]
        return bars(title, text, x=x, names=names, series={"": values})

    figures = [against("Accuracy against tokens", "visual tokens left", "visual_tokens")]
    if "flops" in rows[0]:
        x, scale = "prefill FLOPs, % of those with all tokens", ratio(100, rows[0]["flops"])
        figures.append(against("Accuracy against compute", x, "flops", scale))
    text_same = "Share of the questions that a method answers word by word as the model with all visual tokens does."
    figures.append(each("Agreement with vanilla", text_same, "same answer, %", "same_answer", 100))
    if "prefill_s" in rows[0]:
        text_time = "Median for a batch, vision tower included, compiled before."
        text_cache = "Keys and values held for a question, with room for its answer."
        figures.append(each("Prefill time", text_time, "ms", "prefill_s", 1000))
        figures.append(each("KV cache", text_cache, "KiB", "cache_bytes", 1 / 1024))
    return figures


def _notes(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    found = ["± is half of a 95 % interval; differences are paired, on the same questions."]
    if "prefill_runs" in rows[0]:
        found.append(
            f"Prefill: a batch of {settings['batch_size']}, median of {rows[0]['prefill_runs']}. KV cache: per "
            f"question, with room for {settings['decode_capacity']} new tokens."
        )
    if "flops" in rows[0]:
        found.append("GFLOP: of one question's prefill, vision tower included, by matrix products alone.")
    return found
