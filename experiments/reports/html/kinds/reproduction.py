"""`experiments.reproduce`: the paper's benchmarks, published figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reports import protocol_tables
from experiments.reports.html.charts import bars
from experiments.reports.html.page import Figure, Page, Table, facts
from experiments.reports.tables import Column, number, percent

Rows = Sequence[Mapping[str, Any]]


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    del folder
    rows: Rows = report["rows"]
    judged = protocol_tables.of_benchmarks(report["protocol"]) if "protocol" in report else []
    methods = [cell["method"] for cell in rows[0]["carved"]] if rows else []
    notes = [f"{what}: {why}." for what, why in {**report["skipped"], **report["failed"]}.items()]
    if report["errors"]:
        notes.append(f"{len(report['errors'])} questions could not be asked and count as wrong.")
    if not judged:
        notes.append("LLaVA's: arXiv 2310.03744. The paper's: arXiv 2503.10501, figure 1.")
    return Page(
        title="The paper's benchmarks",
        facts=facts(report),
        tables=[Table.of(f"{one.title}. {one.text}", one.columns, one.rows) for one in judged]
        or [_scores(rows, methods), _averages(report["averages"], methods)],
        figures=_figures([row for row in rows if row["vanilla"] is not None], methods),
        notes=notes,
    )


def _scores(rows: Rows, methods: Sequence[str]) -> Table:
    columns: list[Column] = [
        ("benchmark", lambda row: row["label"]),
        ("vanilla", lambda row: number(row["vanilla"])),
        ("LLaVA's", lambda row: number(row["llava"])),
        ("the paper's", lambda row: number(row["paper"])),
    ]
    for i, name in enumerate(methods):
        columns += [
            (name, _carved(i, "here", number)),
            ("of vanilla", _carved(i, "of_vanilla", percent)),
            ("the paper's", _carved(i, "paper", number)),
            ("of its vanilla", _carved(i, "paper_of_vanilla", percent)),
        ]
    return Table.of("Scores, ours and published", columns, rows)


def _carved(method: int, what: str, show: Callable[[float | None], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: show(row["carved"][method][what])


def _averages(averages: Rows, methods: Sequence[str]) -> Table:
    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("of vanilla", lambda row: percent(row["of_vanilla"])),
        ("benchmarks", lambda row: str(row["sets"])),
        ("of vanilla where the paper has figures", lambda row: percent(row["here"])),
        ("the paper's", lambda row: percent(row["paper"])),
        ("benchmarks", lambda row: str(row["both"])),
    ]
    rows = [row | {"method": name} for row, name in zip(map(dict, averages), methods, strict=True)]
    return Table.of("Averages", columns, rows)


def _figures(rows: Rows, methods: Sequence[str]) -> list[Figure]:
    """Over benchmarks with a score of vanilla's."""
    if not rows:
        return []
    shares = {name: [row["carved"][i]["of_vanilla"] for row in rows] for i, name in enumerate(methods)}
    series = {name: [None if one is None else 100 * one for one in own] for name, own in shares.items()}
    text = "Each method's score, in percent of the score with all visual tokens."
    return [bars("Kept of vanilla", text, x="of vanilla, %", names=[row["label"] for row in rows], series=series)]
