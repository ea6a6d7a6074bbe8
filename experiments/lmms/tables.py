"""From scores to the table with the published figures beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.core.methods import BASELINE
from experiments.lmms.model_args import INFORMATION
from experiments.lmms.sets import PUBLISHED_KEEP, Figure, Set
from experiments.reports.tables import plain
from models.engine.plan import TOKENCARVE_LAYER

Scores = Mapping[str, Mapping[str, float]]
"""Metrics of a set, by method."""


@dataclasses.dataclass(frozen=True)
class Column:
    """TokenCarve at one budget, by one route to its information score.

    Attributes:
      keep: as on the command line.
      information: a name of `INFORMATION`.
    """

    keep: float | int
    information: str

    @property
    def name(self) -> str:
        """Its schedule as `experiments.core.schedules` reads it, which is its name in all records.

        >>> Column(128, "svd").name
        'tokencarve-svd@2=128'
        """
        return f"{INFORMATION[self.information]}@{TOKENCARVE_LAYER}={self.keep}"


def value(figure: Figure, metrics: Mapping[str, float]) -> float | None:
    """What the table has for a figure; None where a metric is missing."""
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
    return [
        {
            "label": figure.label,
            "set": one.name,
            "counts": figure is one.figures[0],
            "vanilla": value(figure, scores.get(one.name, {}).get(BASELINE, {})),
            "llava": figure.llava,
            "paper": figure.vanilla,
            "carved": [_cell(figure, scores.get(one.name, {}), column) for column in columns],
        }
        for one in sets
        for figure in one.figures
    ]


def _cell(figure: Figure, scores: Scores, column: Column) -> dict[str, Any]:
    here, vanilla = (value(figure, scores.get(name, {})) for name in (column.name, BASELINE))
    paper = figure.carved if column.keep == PUBLISHED_KEEP else None
    return {
        "method": column.name,
        "here": here,
        "of_vanilla": here / vanilla if here is not None and vanilla else None,
        "paper": paper,
        "paper_of_vanilla": paper / figure.vanilla if paper and figure.vanilla else None,
    }


def averages(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every column the mean share of vanilla that is kept, over all sets, and over those that the paper has too.

    Returns:
      Per column `of_vanilla` and `sets`; and, over `both` sets, `here` and `paper`.
    """

    def mean(values: Sequence[float]) -> float | None:
        return fmean(values) if values else None

    out = []
    for cells in zip(*(row["carved"] for row in rows if row["counts"]), strict=True):
        scored = [cell for cell in cells if cell["of_vanilla"] is not None]
        both = [cell for cell in scored if cell["paper_of_vanilla"] is not None]
        here, paper = (mean([cell[name] for cell in both]) for name in ("of_vanilla", "paper_of_vanilla"))
        own = mean([cell["of_vanilla"] for cell in scored])
        out.append({"of_vanilla": own, "sets": len(scored), "here": here, "paper": paper, "both": len(both)})
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
        line = [row["label"], *(_number(row[name]) for name in ("vanilla", "llava", "paper"))]
        for cell, known in zip(row["carved"], published, strict=True):
            line += [_number(cell["here"]), _percent(cell["of_vanilla"])]
            line += [_number(cell["paper"]), _percent(cell["paper_of_vanilla"])] if known else []
        table.append(line)
    for label, ours, papers in (("mean of all sets", "of_vanilla", ""), ("mean of sets with both", "here", "paper")):
        line = [label, "", "", ""]
        for mean, known in zip(averages(rows), published, strict=True):
            line += ["", _percent(mean[ours])]
            line += ["", _percent(mean.get(papers))] if known else []
        table.append(line)
    return "\n".join([plain([header, *table]), "", *notes])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
