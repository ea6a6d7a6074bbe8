"""Figures: rank against accuracy, and rank from layer to layer. Matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.attention_rank.report import budgets
from experiments.metrics.summary import BASELINE
from models.io.writing import replacing

Rows = Sequence[Mapping[str, Any]]
_MARKERS = "osD^v<>Pp*Xhd8H"
# Okabe and Ito's colours, told apart by colour-blind readers too: the paper's method, others at a decoder layer, at
# the projector's output, in the tower.
_COLOURS = {"tokencarve": "#D55E00", "decoder": "#0072B2", "input": "#009E73", "tower": "#CC79A7"}
_NAMES = {"rank": "numerical rank", "effective_rank": "effective rank"}


def _styles(rows: Rows) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method: the colour says where it cuts, the marker which it is."""
    used = dict.fromkeys(_COLOURS, 0)
    found = {}
    for row in next(iter(budgets(rows).values())):
        group = "tokencarve" if row["method"].startswith("tokencarve") else row["place"]
        found[row["method"]] = _COLOURS[group], _MARKERS[used[group] % len(_MARKERS)]
        used[group] += 1
    return found


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * count + 2.6, 4.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for one in axes:
        one.grid(color="0.9", linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _legend(figure: Any, rows: Rows, extra: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D

    own = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
        for name, (colour, marker) in _styles(rows).items()
    ]
    figure.legend(handles=[*own, *extra], loc="outside right center", frameon=False, fontsize=8)


def against_accuracy(rows: Rows, *, first: int) -> Any:
    """Rank and effective rank of all tokens' attention output against accuracy, a point per method and budget."""
    from matplotlib.lines import Line2D

    figure, axes = _panels(len(_NAMES))
    styles, by_budget = _styles(rows), budgets(rows)
    (vanilla,) = (row for row in rows if row["method"] == BASELINE)
    last = len(vanilla["layers"]["all"]["rank"]) - 1
    fills = {kept: number for number, kept in enumerate(by_budget)}
    for one, (name, words) in zip(axes, _NAMES.items(), strict=True):
        for kept, own in by_budget.items():
            for row in own:
                colour, marker = styles[row["method"]]
                one.plot(
                    row["behind_cut"]["all"][name],
                    100 * row["accuracy"]["share"],
                    linestyle="",
                    **_look(colour, marker, fills[kept]),
                )
        one.plot(vanilla["behind_cut"]["all"][name], 100 * vanilla["accuracy"]["share"], "k*", markersize=11)
        one.set_xlabel(f"{words} of the attention output, mean of layers {first} to {last}")
    axes[0].set_ylabel("accuracy, %")
    extra = [Line2D([], [], color="k", marker="*", linestyle="", markersize=9, label=BASELINE)]
    extra += [
        Line2D([], [], linestyle="", label=f"{kept} visual tokens", **_look("0.3", "o", number))
        for kept, number in fills.items()
    ]
    _legend(figure, rows, extra)
    return figure


def _look(colour: str, marker: str, number: int) -> dict[str, Any]:
    """A budget shows in how a marker is filled: whole, hollow; further ones are smaller each time."""
    hollow = number % 2 == 1
    return {
        "marker": marker,
        "color": colour,
        "markerfacecolor": "white" if hollow else colour,
        "markersize": 7 - number // 2,
        "markeredgewidth": 1.4,
    }


def by_layer(rows: Rows, *, first: int) -> Any:
    """Effective rank of all tokens' attention output in each layer, a line per method, a panel per budget."""
    from matplotlib.lines import Line2D

    by_budget = budgets(rows)
    figure, axes = _panels(len(by_budget))
    styles = _styles(rows)
    (vanilla,) = (row["layers"]["all"]["effective_rank"] for row in rows if row["method"] == BASELINE)
    for one, (kept, own) in zip(axes, by_budget.items(), strict=True):
        one.axvline(first - 0.5, color="0.6", linestyle=":", linewidth=1)
        for row in own:
            colour, marker = styles[row["method"]]
            one.plot(row["layers"]["all"]["effective_rank"], color=colour, marker=marker, linewidth=1, markersize=5)
        one.plot(vanilla, "k-", linewidth=2.2)
        one.set_title(f"{kept} visual tokens left", fontsize=10)
        one.set_xlabel("decoder layer")
        one.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("effective rank of the attention output")
    extra = [
        Line2D([], [], color="k", linewidth=2.2, label=BASELINE),
        Line2D([], [], color="0.6", linestyle=":", label="cut in the decoder"),
    ]
    _legend(figure, rows, extra)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a PNG so that it appears whole or not at all."""
    with replacing(path) as part:
        figure.savefig(part, format="png")
