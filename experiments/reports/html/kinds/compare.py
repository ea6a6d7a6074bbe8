"""`experiments.compare`: many methods at several budgets, at equal count and at equal compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.comparison.cells import COUNT, REFERENCE
from experiments.comparison.tables import parts, quality
from experiments.core.results import format_bytes, format_seconds
from experiments.reports.html.charts import Point, bars, points
from experiments.reports.html.page import Figure, Page, Table
from experiments.reports.html.scenes import gallery
from experiments.reports.html.words import facts, percent, with_interval
from experiments.reports.html.words import points as in_points

_BARS = (
    ("same_answer", "same answer, %", 100, "Agreement with vanilla", "Answers that are word by word vanilla's."),
    ("prefill_s", "ms", 1e3, "Prefill time", "Median for a batch, vision tower included, compiled before."),
    ("own_s", "ms", 1e3, "Time of the method alone", "Median of the compressors for one image."),
    ("cache_bytes", "KiB", 1 / 1024, "KV cache", "Keys and values of a question's prompt."),
)


def is_it(report: Mapping[str, Any]) -> bool:
    """Whether it is such a run's."""
    rows = report.get("rows")
    return isinstance(rows, list) and bool(rows) and "cell" in rows[0] and "basis" in rows[0]


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    cells = {row["cell"]: row for row in rows if not row["why_not"]}
    methods = [dict(row, key=key) for key, row in cells.items()]
    said = {sample["sample"]: sample["said"] for sample in report["samples"]}
    return Page(
        title="Every way to shrink visual tokens, side by side",
        lead=_lead(rows, report),
        facts=facts(report),
        tables=[_table(title, own) for title, own in parts(rows)],
        figures=_figures(rows, cells),
        notes=report["notes"],
        gallery=gallery(report.get("gallery", ()), methods, said, folder),
    )


def _lead(rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> str:
    budgets = [row for row in rows if row["basis"] == COUNT and not row["why_not"]]
    text = f"{len({row['method'] for row in rows})} methods on {report['source']}."
    if not budgets:
        return text
    most = max(row["budget"] for row in budgets)
    own = {row["method"]: row for row in budgets if row["budget"] == most}

    def share(row: Mapping[str, Any]) -> str:
        return with_interval(row["accuracy"]["overall"]) if row["accuracy"] else percent(row["same_answer"])

    if (ours := own.pop(REFERENCE, None)) is not None:
        word = "of the questions right" if ours["accuracy"] else "as with all of them"
        text += f" With {most} visual tokens left, {REFERENCE} answers {share(ours)} {word}"
        best = max(own.values(), key=quality, default=None)
        text += "." if best is None else f"; the best of the others is {best['method']}, with {share(best)}."
    return text


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    families = [name for name in rows[0]["accuracy"] or () if name != "overall"]
    known = rows[0]["accuracy"] is not None
    columns = ["method", "tokens", "layer average", *families, *(["overall"] if known else [])]
    columns += ["vs vanilla", "vs tokencarve"] if known else []
    columns += ["same answer", "KL", "GFLOP", "own time", "prefill", "KV cache"]
    out = []
    for row in rows:
        cells = [row["method"], str(row["tokens"]), f"{row['average']:.0f}"]
        if known:
            cells += [percent(row["accuracy"][family]["share"]) for family in families]
            cells.append(with_interval(row["accuracy"]["overall"]))
            cells += [in_points(*(row[name] or (None, None))) for name in ("to_vanilla", "to_reference")]
        cells += [percent(row["same_answer"]), f"{row['kl_mean']:.3f}", f"{row['flops'] / 1e9:.2f}"]
        cells += [format_seconds(row["own_s"]), format_seconds(row["prefill_s"]), format_bytes(row["cache_bytes"])]
        out.append(cells)
    return Table(title, columns, out, frozenset(i for i, row in enumerate(rows) if row["method"] == REFERENCE))


def _figures(rows: Sequence[Mapping[str, Any]], cells: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    vanilla = rows[0]
    known = vanilla["accuracy"] is not None
    up = "right answers, %" if known else "answers as with all visual tokens, %"
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in cells.values():
        by_method.setdefault(row["method"], []).append(row)
    best_first = sorted(by_method, key=lambda name: -max(map(quality, by_method[name])))

    def against(what: str, scale: float) -> dict[str, list[Point]]:
        return {name: [_point(row, scale * row[what]) for row in by_method[name]] for name in best_first}

    figures = [
        points(
            "Accuracy against tokens",
            "Visual tokens behind the last cut; whiskers are 95 % intervals.",
            x="visual tokens left",
            y=up,
            series=against("tokens", 1),
        ),
        points(
            "Accuracy against compute",
            "A method that cuts before the decoder keeps more tokens at the same cost.",
            x="prefill FLOPs, % of those with all tokens",
            y=up,
            series=against("flops", 100 / vanilla["flops"]),
        ),
    ]
    budgets = sorted({row["budget"] for row in rows if row["basis"] == COUNT}, reverse=True)
    at = {(row["method"], row["budget"]): row for row in rows if row["basis"] == COUNT and not row["why_not"]}
    names = [name for name in best_first if any((name, budget) in at for budget in budgets)]
    for what, unit, scale, title, text in _BARS:
        series = {
            f"{budget} left": [scale * at[name, budget][what] if (name, budget) in at else None for name in names]
            for budget in budgets
        }
        if names:
            figures.append(bars(title, text, x=unit, names=names, series=series))
    return figures


def _point(row: Mapping[str, Any], x: float) -> Point:
    if row["accuracy"] is None:
        return Point(x, 100 * row["same_answer"])
    return Point(x, *(100 * row["accuracy"]["overall"][name] for name in ("share", "low", "high")))
