"""`experiments.rank`: whether the rank of the attention output explains accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.metrics.summary import BASELINE
from experiments.reports.html.charts import RIGHT, accuracy_at, bars, points
from experiments.reports.html.page import Figure, Page, Table, facts
from experiments.reports.tables import Column, missing, percent, with_interval

Rows = Sequence[Mapping[str, Any]]

_RANK = "effective rank of the attention output"
_SHOWN = 6  # methods in the figure by layer


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    del folder
    rows: Rows = report["methods"]
    # Those that every figure and sentence is of; results.json has more.
    correlations = [
        row
        for row in report["correlations"]
        if row["layer"] is None and not missing(row["value"])
        if (row["tokens"], row["measure"]) == ("visual", "effective_rank")
    ]
    return Page(
        title="Does rank explain accuracy?",
        lead=_lead(correlations),
        facts=facts(report),
        tables=[_methods(rows), _correlations(correlations)],
        figures=_figures(rows),
        notes=["Intervals are of 95 %. Effective rank is the exponential of the entropy of the singular values."],
    )


def _lead(correlations: Rows) -> str:
    parts = [
        f"{row['value']:+.2f} with {row['visual_tokens']} tokens left"
        for row in correlations
        if (row["kind"], row["with"], row["place"]) == ("Spearman", "accuracy", None)
        and row["visual_tokens"] is not None
    ]
    return f"Spearman's correlation of effective rank and accuracy across methods: {', '.join(parts)}." if parts else ""


def _figures(rows: Rows) -> list[Figure]:
    budgets = sorted({row["visual_tokens"] for row in rows if row["method"] != BASELINE}, reverse=True)
    of = {n: [row for row in rows if row["visual_tokens"] == n or row["method"] == BASELINE] for n in budgets}
    figures = []
    for budget, own in of.items():
        ranks = {row["method"]: [accuracy_at(row["behind_cut"]["visual"]["effective_rank"], row)] for row in own}
        text = f"Mean over the layers behind the cut, {budget} visual tokens left; whiskers are 95 % intervals."
        figures.append(points(f"Accuracy against rank, {budget} left", text, x=_RANK, y=RIGHT, series=ranks))
    for budget, own in of.items():
        best = sorted(own, key=lambda row: -row["accuracy"]["share"])[:_SHOWN]
        layers = {row["method"]: list(enumerate(row["layers"]["visual"]["effective_rank"])) for row in best}
        text = f"Visual tokens, the {len(best)} most accurate with {budget} left."
        figures.append(points(f"Rank by layer, {budget} left", text, x="layer", y=_RANK, series=layers, small=True))
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != BASELINE))
    same = {(row["method"], row["visual_tokens"]): 100 * row["same_answer"]["share"] for row in rows}
    agreement = {f"{budget} left": [same[name, budget] for name in names] for budget in budgets}
    text = "Questions answered word by word as with all visual tokens."
    return [*figures, bars("Agreement with vanilla", text, x="same answer, %", names=names, series=agreement)]


def _methods(rows: Rows) -> Table:
    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("cuts in", lambda row: row["place"] or "none"),
        ("visual tokens", lambda row: str(row["visual_tokens"])),
        ("accuracy", lambda row: with_interval(row["accuracy"])),
        ("same answer", lambda row: percent(row["same_answer"]["share"])),
        ("rank", lambda row: f"{row['behind_cut']['visual']['rank']:.1f}"),
        ("effective rank", lambda row: f"{row['behind_cut']['visual']['effective_rank']:.1f}"),
        ("entropy", lambda row: f"{row['behind_cut']['visual']['entropy']:.2f}"),
    ]
    strong = (i for i, row in enumerate(rows) if row["method"] == "tokencarve")
    return Table.of("All methods, mean over the layers behind the cut", columns, rows, strong)


def _correlations(correlations: Rows) -> Table:
    columns: list[Column] = [
        ("kind", lambda row: row["kind"]),
        ("measure", lambda row: row["measure"].replace("_", " ")),
        ("with", lambda row: row["with"].replace("_", " ")),
        ("visual tokens", lambda row: str(row["visual_tokens"] or "all budgets")),
        ("methods that cut in", lambda row: row["place"] or "any place"),
        ("methods", lambda row: str(row["methods"])),
        ("value", lambda row: f"{row['value']:+.2f}"),
        ("95 % interval", lambda row: "n/a" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}"),
        ("p", lambda row: "n/a" if row["p"] is None else f"{row['p']:.2g}"),
    ]
    return Table.of("Correlations across methods, mean over the layers behind the cut", columns, correlations)
