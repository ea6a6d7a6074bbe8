"""`experiments.reproduce`: the paper's benchmarks, published figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reports.html.charts import bars, number
from experiments.reports.html.page import Figure, Page, Table
from experiments.reports.html.words import facts, percent


def is_it(report: Mapping[str, Any]) -> bool:
    """Whether it is such a run's."""
    return "averages" in report and "scores" in report


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    del folder
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    notes = [f"{what}: {why}." for what, why in {**report["skipped"], **report["failed"]}.items()]
    if report["errors"]:
        notes.append(f"{len(report['errors'])} questions could not be asked and count as wrong.")
    notes.append("LLaVA's: arXiv 2310.03744. The paper's: arXiv 2503.10501, figure 1.")
    return Page(
        title="The paper's benchmarks",
        facts=facts(report),
        tables=[_table(rows), _averages(rows, report["averages"])],
        figures=[_figure(rows)] if any(row["vanilla"] is not None for row in rows) else [],
        notes=notes,
    )


def _methods(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [cell["method"] for cell in rows[0]["carved"]] if rows else []


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["benchmark", "vanilla", "LLaVA's", "the paper's"]
    for name in _methods(rows):
        columns += [name, "of vanilla", "the paper's", "of its vanilla"]
    out = []
    for row in rows:
        cells = [row["label"], *(number(row[name]) for name in ("vanilla", "llava", "paper"))]
        for one in row["carved"]:
            cells += [number(one["here"]), percent(one["of_vanilla"])]
            cells += [number(one["paper"]), percent(one["paper_of_vanilla"])]
        out.append(cells)
    return Table("Scores, ours and published", columns, out)


def _averages(rows: Sequence[Mapping[str, Any]], averages: Sequence[Mapping[str, Any]]) -> Table:
    columns = [
        "method",
        "of vanilla",
        "benchmarks",
        "of vanilla where the paper has figures",
        "the paper's",
        "benchmarks",
    ]
    out = [
        [
            name,
            percent(one["of_vanilla"]),
            str(one["sets"]),
            percent(one["here"]),
            percent(one["paper"]),
            str(one["both"]),
        ]
        for name, one in zip(_methods(rows), averages, strict=True)
    ]
    return Table("Averages", columns, out)


def _figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    shown = [row for row in rows if row["vanilla"] is not None]
    series = {}
    for i, name in enumerate(_methods(rows)):
        cells = [row["carved"][i] for row in shown]
        series[name] = [None if one["of_vanilla"] is None else 100 * one["of_vanilla"] for one in cells]
    text = "Each method's score, in percent of the score with all visual tokens."
    return bars("Kept of vanilla", text, x="of vanilla, %", names=[row["label"] for row in shown], series=series)
