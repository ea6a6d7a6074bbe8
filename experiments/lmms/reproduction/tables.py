"""From scores to the table with the published figures beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.core.results import format_table
from experiments.lmms.reproduction.sets import Figure, Set
from experiments.lmms.reproduction.settings import Column
from experiments.metrics.summary import BASELINE

Scores = Mapping[str, Mapping[str, float]]
"""Metrics of a set, by method."""


def value(figure: Figure, metrics: Mapping[str, float]) -> float | None:
    """What the table has for a figure; None where a metric is missing. Without names, it is the first there is."""
    wanted = figure.metrics or tuple(metrics)[:1]
    return figure.scale * sum(metrics[name] for name in wanted) if wanted and metrics.keys() >= set(wanted) else None


def rows(sets: Sequence[Set], scores: Mapping[str, Scores], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Numbers of the table, as JSON types; None where there is none.

    Args:
      sets: all that were asked for.
      scores: by set; sets that were skipped or failed have none.
      columns: methods beside vanilla.

    Returns:
      One entry per figure: `label`, `set`, `counts` (whether averages have it), `vanilla`, published `llava` and
      `paper`, and `carved`, one entry per column with `here`, `of_vanilla`, `paper` and `paper_of_vanilla`.
    """
    out = []
    for one in sets:
        own = scores.get(one.name, {})
        for number, figure in enumerate(one.figures):
            vanilla, carved = value(figure, own.get(BASELINE, {})), []
            for column in columns:
                here, paper = value(figure, own.get(column.name, {})), figure.carved.get(int(column.keep))
                carved.append(
                    {
                        "method": column.name,
                        "here": here,
                        "of_vanilla": here / vanilla if here is not None and vanilla else None,
                        "paper": paper,
                        "paper_of_vanilla": paper / figure.vanilla if paper and figure.vanilla else None,
                    }
                )
            out.append(
                {
                    "label": figure.label,
                    "set": one.name,
                    "counts": number == 0,
                    "vanilla": vanilla,
                    "llava": figure.llava,
                    "paper": figure.vanilla,
                    "carved": carved,
                }
            )
    return out


def averages(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every column the mean share of vanilla that is kept, over all sets, and over those that the paper has too.

    Returns:
      Per column `of_vanilla` and `sets`; and, over `both` sets, `here` and `paper`.
    """
    out = []
    for cells in zip(*(row["carved"] for row in rows if row["counts"]), strict=True):
        all_of = [cell["of_vanilla"] for cell in cells if cell["of_vanilla"] is not None]
        both = [
            (cell["of_vanilla"], cell["paper_of_vanilla"])
            for cell in cells
            if None not in (cell["of_vanilla"], cell["paper_of_vanilla"])
        ]
        here, paper = (fmean(part) for part in zip(*both, strict=True)) if both else (None, None)
        mean = fmean(all_of) if all_of else None
        out.append({"of_vanilla": mean, "sets": len(all_of), "here": here, "paper": paper, "both": len(both)})
    return out


def text(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], notes: Sequence[str]) -> str:
    """The table, its averages, and what one has to know to read it."""
    several = len({column.information for column in columns}) > 1
    published = [any(row["carved"][i]["paper"] is not None for row in rows) for i in range(len(columns))]
    header = ["", "vanilla", "LLaVA's", "paper's"]
    for column, known in zip(columns, published, strict=True):
        header += [f"{column.keep}, {column.information}" if several else f"{column.keep}", "of vanilla"]
        header += ["paper's", "of its vanilla"] if known else []
    table = []
    for row in rows:
        table.append([row["label"], *(_number(row[name]) for name in ("vanilla", "llava", "paper"))])
        for cell, known in zip(row["carved"], published, strict=True):
            table[-1] += [_number(cell["here"]), _percent(cell["of_vanilla"])]
            table[-1] += [_number(cell["paper"]), _percent(cell["paper_of_vanilla"])] if known else []
    means = averages(rows)
    for label, ours, theirs in (("mean of all sets", "of_vanilla", None), ("mean of sets with both", "here", "paper")):
        line = [label, "", "", ""]
        for mean, known in zip(means, published, strict=True):
            line += ["", _percent(mean[ours])]
            line += ["", _percent(mean[theirs]) if theirs else ""] if known else []
        table.append(line)
    return "\n".join([format_table(header, table), "", *notes])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
