"""Whether a comparison orders methods as published tables do.

A table is one file of `experiments/data/published`: rows of different sources come from different environments, and are
never mixed. Its budget is matched by count. Where a method's published form is a schedule of several cuts, its row here
is that schedule's, not the one cut of its score.
"""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.core.methods import OFFICIAL
from experiments.metrics.correlation import correlate
from experiments.reports import tables
from experiments.reports.compare_tables import COMPUTE, COUNT, quality
from experiments.reports.tables import Column

FOLDER = Path(__file__).parents[1] / "data" / "published"
FORMS = {"as released": "", "positions kept": ",kept"}
_KINDS = ("Kendall", "Spearman")


@dataclasses.dataclass(frozen=True)
class Published:
    """One table of a paper.

    Attributes:
      source: the paper and its table.
      model: that was asked.
      metric: what its figures are; more is better.
      budget: what its counts count.
      methods: by our names, figures by visual tokens left.
    """

    source: str
    model: str
    metric: str
    budget: str
    methods: Mapping[str, Mapping[int, float]]

    @classmethod
    def read(cls, path: Path) -> Published:
        """From a TOML file; ValueError, TypeError or KeyError where it is not one of these."""
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        methods = {
            name: {int(count): float(figure) for count, figure in row.items()} for name, row in found["methods"].items()
        }
        return cls(**{**found, "methods": methods})


def published() -> list[Published]:
    """All tables, in the order of their files' names."""
    return [Published.read(path) for path in sorted(FOLDER.glob("*.toml"))]


def agreement(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rank correlation of a comparison's rows with each published table.

    Args:
      rows: of a comparison, see `comparison.rows`.

    Returns:
      For each table, budget, basis and form that shares four methods or more: `source`, `budget`, `basis`, `form`,
      `methods` (names), and "Kendall" and "Spearman" as `metrics.correlation.correlate` gives them. A method that cuts
      in the decoder has one form, which counts for both.
    """
    known = {
        (row["method"], row["basis"], row["budget"]): quality(row)
        for row in rows
        if row["basis"] and not row["why_not"]
    }
    out = []
    for table, basis, (form, suffix) in itertools.product(published(), (COUNT, COMPUTE), FORMS.items()):
        for budget in sorted({count for row in table.methods.values() for count in row}, reverse=True):
            pairs = {}
            for name, row in table.methods.items():
                schedule = f"{name}-schedule"
                name = schedule if schedule in OFFICIAL else name
                ours = known.get((name + suffix, basis, budget), known.get((name, basis, budget)))
                if budget in row and ours is not None:
                    pairs[name] = (ours, row[budget])
            x, y = np.asarray([*pairs.values()], float).reshape(-1, 2, 1).swapaxes(0, 1)
            found = {kind: correlate(x, y, kind) for kind in _KINDS}
            if found[_KINDS[0]]["value"] is not None:
                about = {"source": table.source, "budget": budget, "basis": basis, "form": form}
                out.append(about | {"methods": list(pairs), **found})
    return out


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The agreement as a table."""

    def interval(kind: str) -> Column:
        return kind, lambda row: "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**row[kind])

    columns: list[Column] = [
        ("published in", lambda row: row["source"]),
        ("tokens", lambda row: str(row["budget"])),
        ("equal", lambda row: row["basis"]),
        ("form", lambda row: row["form"]),
        ("methods", lambda row: str(len(row["methods"]))),
        *map(interval, _KINDS),
    ]
    return f"### Order of methods, here and as published\n\n{tables.markdown(tables.cells(columns, found))}"
