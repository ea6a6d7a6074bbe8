"""Accuracy against compute, one line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.comparison.cells import REFERENCE
from experiments.comparison.tables import quality
from models.io.writing import replacing

_CONTROLS = ("random", "uniform", "pooling", "norm", "downsampled")
_MARKERS = "osD^vPX<*"  # nine and twenty colours: no two methods look alike


def save(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG: share of right answers against the prefill's floating-point operations, vanilla at 100 %.

    Args:
      rows: from `tables.rows`, vanilla first.
      path: of the file.
    """
    from matplotlib import colormaps  # imported here: it takes a second that `--help` should not wait for
    from matplotlib.figure import Figure

    vanilla, found = rows[0], dict[str, dict[str, Mapping[str, Any]]]()  # by method and cell
    for row in rows[1:]:
        if not row["why_not"]:
            found.setdefault(row["method"], {})[row["cell"]] = row
    best_first = sorted(found, key=lambda name: -max(map(quality, found[name].values())))
    colours = colormaps["tab20"](range(20))
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(best_first):
        points = sorted(found[name].values(), key=lambda row: (row["flops"], quality(row)))
        errors = None
        if vanilla["accuracy"] is not None:
            overall = [row["accuracy"]["overall"] for row in points]
            errors = [[100 * abs(one[side] - one["share"]) for one in overall] for side in ("low", "high")]
        control, main = name in _CONTROLS, name == REFERENCE
        axes.errorbar(
            [100 * row["flops"] / vanilla["flops"] for row in points],
            [100 * quality(row) for row in points],
            yerr=errors,
            label=name,
            color="black" if main else "0.6" if control else colours[number % len(colours)],
            linestyle="--" if control else "-",
            linewidth=2.5 if main else 1.2,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=7 if main else 5,
            elinewidth=0.6,
            zorder=3 if main else 2,
        )
    axes.axhline(100 * quality(vanilla), color="0.3", linewidth=1, linestyle=":")
    axes.annotate(
        "all visual tokens",
        (1, 100 * quality(vanilla)),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    axes.set_xlabel("prefill FLOPs, % of those with all visual tokens")
    axes.set_ylabel("answers as with all visual tokens, %" if vanilla["accuracy"] is None else "right answers, %")
    axes.grid(alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=150)
