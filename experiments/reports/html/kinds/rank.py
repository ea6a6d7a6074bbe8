"""`experiments.rank`: whether the rank of the attention output explains accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.metrics.summary import BASELINE
from experiments.reports.html.charts import Point, bars, points
from experiments.reports.html.page import Page, Table
from experiments.reports.html.words import facts, percent, with_interval

_RANK = "effective rank of the attention output"
_SHOWN = 6  # methods in the figure by layer


def is_it(report: Mapping[str, Any]) -> bool:
    """Whether it is such a run's."""
    return "correlations" in report and "methods" in report


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    del folder
    rows: Sequence[Mapping[str, Any]] = report["methods"]
    budgets = sorted({row["visual_tokens"] for row in rows if row["method"] != BASELINE}, reverse=True)

    def rank(row: Mapping[str, Any]) -> float:
        return row["behind_cut"]["visual"]["effective_rank"]

    def of(budget: int) -> list[Mapping[str, Any]]:
        return [row for row in rows if row["visual_tokens"] == budget or row["method"] == BASELINE]

    figures = []
    for budget in budgets:
        series = {
            row["method"]: [Point(rank(row), *(100 * row["accuracy"][name] for name in ("share", "low", "high")))]
            for row in of(budget)
        }
        text = f"Mean over the layers behind the cut, {budget} visual tokens left; whiskers are 95 % intervals."
        figures.append(
            points(f"Accuracy against rank, {budget} left", text, x=_RANK, y="right answers, %", series=series)
        )
    for budget in budgets:
        best = sorted(of(budget), key=lambda row: -row["accuracy"]["share"])[:_SHOWN]
        series = {
            row["method"]: [
                Point(layer, value) for layer, value in enumerate(row["layers"]["visual"]["effective_rank"])
            ]
            for row in best
        }
        text = f"Visual tokens, the {len(best)} most accurate with {budget} left."
        figures.append(points(f"Rank by layer, {budget} left", text, x="layer", y=_RANK, series=series, lines=True))
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != BASELINE))
    at = {(row["method"], row["visual_tokens"]): row for row in rows}
    agreement = {
        f"{budget} left": [100 * at[name, budget]["same_answer"]["share"] for name in names] for budget in budgets
    }
    text = "Questions answered word by word as with all visual tokens."
    figures.append(bars("Agreement with vanilla", text, x="same answer, %", names=names, series=agreement))
    return Page(
        title="Does rank explain accuracy?",
        lead=_lead(report["correlations"], budgets),
        facts=facts(report),
        tables=[_table(rows), _correlations(report["correlations"])],
        figures=figures,
        notes=["Intervals are of 95 %. Effective rank is the exponential of the entropy of the singular values."],
    )


def _lead(correlations: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> str:
    wanted = {"kind": "spearman", "measure": "effective_rank", "with": "accuracy", "place": None, "tokens": "visual"}
    parts = [
        f"{row['value']:+.2f} with {row['visual_tokens']} tokens left"
        for row in _behind_cut(correlations)
        if row["visual_tokens"] in budgets and all(row[name] == value for name, value in wanted.items())
    ]
    if not parts:
        return ""
    return f"Spearman's correlation of effective rank and accuracy across methods: {', '.join(parts)}."


def _behind_cut(correlations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in correlations if row["layer"] is None and row["value"] is not None]


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    out = [
        [
            row["method"],
            row["place"] or "none",
            str(row["visual_tokens"]),
            with_interval(row["accuracy"]),
            percent(row["same_answer"]["share"]),
            *(f"{row['behind_cut']['visual'][name]:.1f}" for name in ("rank", "effective_rank")),
            f"{row['behind_cut']['visual']['entropy']:.2f}",
        ]
        for row in rows
    ]
    columns = ["method", "cuts in", "visual tokens", "accuracy", "same answer", "rank", "effective rank", "entropy"]
    strong = frozenset(i for i, row in enumerate(rows) if row["method"] == "tokencarve")
    return Table("All methods, mean over the layers behind the cut", columns, out, strong)


def _correlations(correlations: Sequence[Mapping[str, Any]]) -> Table:
    out = [
        [
            row["kind"],
            row["measure"].replace("_", " "),
            row["with"].replace("_", " "),
            str(row["visual_tokens"] or "all budgets"),
            row["place"] or "any place",
            str(row["methods"]),
            f"{row['value']:+.2f}",
            "n/a" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}",
            "n/a" if row["p"] is None else f"{row['p']:.2g}",
        ]
        for row in _behind_cut(correlations)
        if row["tokens"] == "visual" and row["measure"] == "effective_rank"
    ]
    columns = [
        "kind",
        "measure",
        "with",
        "visual tokens",
        "methods that cut in",
        "methods",
        "value",
        "95 % interval",
        "p",
    ]
    return Table("Correlations across methods, mean over the layers behind the cut", columns, out)
