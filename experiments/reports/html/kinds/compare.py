"""`experiments.compare`: many methods at several budgets, at equal count and at equal compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core.results import format_bytes, format_seconds
from experiments.reports import protocol_tables
from experiments.reports.compare_tables import parts
from experiments.reports.html.charts import AS_VANILLA, RIGHT, accuracy_at, bars, family, overall, points, quality
from experiments.reports.html.page import Figure, Page, Table, facts
from experiments.reports.html.scenes import gallery
from experiments.reports.tables import Column, percent, ratio, with_interval
from experiments.reports.tables import points as in_points

Rows = Sequence[Mapping[str, Any]]

_REFERENCE, _COUNT = "tokencarve", "count"
_BARS = (
    ("same_answer", "same answer, %", 100, "Agreement with vanilla", "Answers that are word by word vanilla's."),
    ("prefill_s", "ms", 1e3, "Prefill time", "Median for a batch, vision tower included, compiled before."),
    ("own_s", "ms", 1e3, "Time of the method alone", "Median of the compressors for one image."),
    ("cache_bytes", "KiB", 1 / 1024, "KV cache", "Keys and values of a question's prompt."),
)


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    rows: Rows = report["rows"]
    cells = {row["cell"]: row for row in rows if not row["why_not"]}
    return Page(
        title="Every way to shrink visual tokens, side by side",
        lead=_lead(rows, report["source"]),
        facts=facts(report),
        tables=[*(_table(title, own) for title, own in parts(rows)), *_protocol(report.get("protocol"))],
        figures=_figures(rows, list(cells.values())),
        notes=report["notes"],
        gallery=gallery(report, [dict(row, key=key) for key, row in cells.items()], folder),
    )


def _protocol(found: Mapping[str, Any] | None) -> list[Table]:
    """One table for each part of the protocol, where it was asked for."""
    made = protocol_tables.sections(found) if found else []
    return [Table.of(f"{one.title}. {one.text}", one.columns, one.rows) for one in made]


def _lead(rows: Rows, source: str) -> str:
    budgets = [row for row in rows if row["basis"] == _COUNT and not row["why_not"]]
    text = f"{len({row['method'] for row in rows})} methods on {source}."
    most = max((row["budget"] for row in budgets), default=None)
    own = {row["method"]: row for row in budgets if row["budget"] == most}

    def share(row: Mapping[str, Any]) -> str:
        return with_interval(overall(row)) if row["accuracy"] else percent(row["same_answer"])

    if (reference := own.pop(_REFERENCE, None)) is not None:
        word = "of the questions right" if reference["accuracy"] else "as with all of them"
        text += f" With {most} visual tokens left, {_REFERENCE} answers {share(reference)} {word}"
        best = max(own.values(), key=quality, default=None)
        text += "." if best is None else f"; the best of the others is {best['method']}, with {share(best)}."
    return text


def _table(title: str, rows: Rows) -> Table:
    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("tokens", lambda row: str(row["tokens"])),
        ("layer average", lambda row: f"{row['average']:.0f}"),
    ]
    if rows[0]["accuracy"] is not None:
        columns += [family(name) for name in rows[0]["accuracy"] if name != "overall"]
        columns += [
            ("overall", lambda row: with_interval(overall(row))),
            ("vs vanilla", lambda row: in_points(*(row["to_vanilla"] or [None]))),
            ("vs tokencarve", lambda row: in_points(*(row["to_reference"] or [None]))),
        ]
    columns += [
        ("same answer", lambda row: percent(row["same_answer"])),
        ("KL", lambda row: f"{row['kl_mean']:.3f}"),
        ("GFLOP", lambda row: f"{row['flops'] / 1e9:.2f}"),
        ("own time", lambda row: format_seconds(row["own_s"])),
        ("prefill", lambda row: format_seconds(row["prefill_s"])),
        ("KV cache", lambda row: format_bytes(row["cache_bytes"])),
    ]
    return Table.of(title, columns, rows, strong=(i for i, row in enumerate(rows) if row["method"] == _REFERENCE))


def _figures(rows: Rows, cells: Rows) -> list[Figure]:
    up = AS_VANILLA if rows[0]["accuracy"] is None else RIGHT
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in cells:
        by_method.setdefault(row["method"], []).append(row)
    best_first = sorted(by_method, key=lambda name: -max(map(quality, by_method[name])))

    def against(title: str, text: str, x: str, what: str, scale: float) -> Figure:
        series = {name: [accuracy_at(scale * row[what], row) for row in by_method[name]] for name in best_first}
        return points(title, text, x=x, y=up, series=series)

    about_tokens = "Visual tokens behind the last cut; whiskers are 95 % intervals."
    about_compute = "A method that cuts before the decoder keeps more tokens at the same cost."
    share = "prefill FLOPs, % of those with all tokens"
    figures = [
        against("Accuracy against tokens", about_tokens, "visual tokens left", "tokens", 1),
        against("Accuracy against compute", about_compute, share, "flops", ratio(100, rows[0]["flops"])),
    ]
    at = {(row["method"], row["budget"]): row for row in rows if row["basis"] == _COUNT and not row["why_not"]}
    budgets = sorted({row["budget"] for row in rows if row["basis"] == _COUNT}, reverse=True)
    names = [name for name in best_first if any((name, budget) in at for budget in budgets)]
    for what, unit, scale, title, text in _BARS if names else ():
        series = {
            f"{budget} left": [scale * at[name, budget][what] if (name, budget) in at else None for name in names]
            for budget in budgets
        }
        figures.append(bars(title, text, x=unit, names=names, series=series))
    return figures
