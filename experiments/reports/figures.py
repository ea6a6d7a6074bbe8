"""Figures of `compare` and `rank` as PNGs. Matplotlib is imported when something is drawn: it takes a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.metrics.summary import BASELINE
from models.io.writing import replacing

Row = Mapping[str, Any]

CONTROLS = ("random", "uniform", "pooling", "norm", "downsampled")
_MAIN = "tokencarve"
_RANKS = {"rank": "numerical rank", "effective_rank": "effective rank"}
# Okabe and Ito's colours, which colour-blind readers tell apart too: the paper's method, others by where they cut.
_COLOURS = {_MAIN: "#D55E00", "decoder": "#0072B2", "input": "#009E73", "tower": "#CC79A7"}


def save(figure: Any, path: Path) -> None:
    """Write a PNG so that it appears whole or not at all."""
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=150)


def accuracy_by_flops(rows: Sequence[Row]) -> Any:
    """Share of right answers against the FLOPs of a prefill, vanilla at 100 %; a line per method.

    Args:
      rows: of `experiments.compare`, vanilla first. Without right answers, agreement with vanilla is drawn.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    vanilla, known = rows[0], rows[0]["accuracy"] is not None

    def quality(row: Row) -> float:
        return row["accuracy"]["overall"]["share"] if known else row["same_answer"]

    found = dict[str, dict[str, Row]]()  # by method and cell
    for row in rows[1:]:
        if not row["why_not"]:
            found.setdefault(row["method"], {})[row["cell"]] = row
    colours, markers = colormaps["tab20"](range(20)), "osD^vPX<*"  # 20 and 9: no two methods look alike
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(sorted(found, key=lambda name: -max(map(quality, found[name].values())))):
        points = sorted(found[name].values(), key=lambda row: (row["flops"], quality(row)))
        errors = None
        if known:
            overall = [row["accuracy"]["overall"] for row in points]
            errors = [[100 * abs(one[side] - one["share"]) for one in overall] for side in ("low", "high")]
        control, main = name in CONTROLS, name == _MAIN
        axes.errorbar(
            [100 * row["flops"] / vanilla["flops"] for row in points],
            [100 * quality(row) for row in points],
            yerr=errors,
            label=name,
            color="black" if main else "0.6" if control else colours[number % len(colours)],
            linestyle="--" if control else "-",
            linewidth=2.5 if main else 1.2,
            marker=markers[number % len(markers)],
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
    axes.set_ylabel("right answers, %" if known else "answers as with all visual tokens, %")
    axes.grid(alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def accuracy_by_rank(rows: Sequence[Row], *, first: int) -> Any:
    """Rank and effective rank of all tokens' attention output against accuracy, a point per method and budget.

    Args:
      rows: of `experiments.rank`.
      first: the first layer behind every cut.
    """
    vanilla, budgets = _by_budget(rows)
    last = len(vanilla["layers"]["all"]["rank"]) - 1
    figure, axes, styles = _panels(len(_RANKS), budgets)
    for panel, (name, words) in zip(axes, _RANKS.items(), strict=True):
        for number, own in enumerate(budgets.values()):
            for row in own:
                x, y = row["behind_cut"]["all"][name], 100 * row["accuracy"]["share"]
                panel.plot(x, y, linestyle="", **_filled(*styles[row["method"]], number))
        panel.plot(vanilla["behind_cut"]["all"][name], 100 * vanilla["accuracy"]["share"], "k*", markersize=11)
        panel.set_xlabel(f"{words} of the attention output, mean of layers {first} to {last}")
    axes[0].set_ylabel("accuracy, %")
    counts = {f"{kept} visual tokens": _filled("0.3", "o", number) for number, kept in enumerate(budgets)}
    star: dict[str, Any] = {"color": "k", "marker": "*", "markersize": 9}
    _legend(figure, styles, {BASELINE: star} | counts)
    return figure


def rank_by_layer(rows: Sequence[Row], *, first: int) -> Any:
    """Effective rank of all tokens' attention output in each layer, a line per method, a panel per budget.

    Args:
      rows: of `experiments.rank`.
      first: the first layer behind every cut.
    """
    vanilla, budgets = _by_budget(rows)
    figure, axes, styles = _panels(len(budgets), budgets)
    for panel, (kept, own) in zip(axes, budgets.items(), strict=True):
        panel.axvline(first - 0.5, color="0.6", linestyle=":", linewidth=1)
        for row in own:
            colour, marker = styles[row["method"]]
            panel.plot(row["layers"]["all"]["effective_rank"], color=colour, marker=marker, linewidth=1, markersize=5)
        panel.plot(vanilla["layers"]["all"]["effective_rank"], "k-", linewidth=2.2)
        panel.set_title(f"{kept} visual tokens left", fontsize=10)
        panel.set_xlabel("decoder layer")
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("effective rank of the attention output")
    lines: dict[str, dict[str, Any]] = {
        BASELINE: {"color": "k", "linewidth": 2.2, "linestyle": "-"},
        "cut in the decoder": {"color": "0.6", "linestyle": ":"},
    }
    _legend(figure, styles, lines)
    return figure


def _by_budget(rows: Sequence[Row]) -> tuple[Row, dict[int, list[Row]]]:
    """Vanilla's row, and the others by visual tokens left, most first."""
    (vanilla,) = (row for row in rows if row["method"] == BASELINE)
    budgets = dict[int, list[Row]]()
    for row in sorted((row for row in rows if row is not vanilla), key=lambda row: -row["visual_tokens"]):
        budgets.setdefault(row["visual_tokens"], []).append(row)
    return vanilla, budgets


def _panels(count: int, budgets: Mapping[int, Sequence[Row]]) -> tuple[Any, list[Any], dict[str, tuple[str, str]]]:
    """A figure, its panels, and colour and marker of each method: the colour says where it cuts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * count + 2.6, 4.8), layout="constrained", dpi=150)
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for panel in panels:
        panel.grid(color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    markers, used, styles = "osD^v<>Pp*Xhd8H", dict.fromkeys(_COLOURS, 0), {}
    for row in next(iter(budgets.values())):
        group = _MAIN if row["method"].startswith(_MAIN) else row["place"]
        styles[row["method"]] = _COLOURS[group], markers[used[group] % len(markers)]
        used[group] += 1
    return figure, list(panels), styles


def _filled(colour: str, marker: str, number: int) -> dict[str, Any]:
    """A budget shows in how a marker is filled: whole, hollow; further ones are smaller each time."""
    return {
        "marker": marker,
        "color": colour,
        "markerfacecolor": "white" if number % 2 else colour,
        "markersize": 7 - number // 2,
        "markeredgewidth": 1.4,
    }


def _legend(figure: Any, styles: Mapping[str, tuple[str, str]], more: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    looks = {name: {"color": colour, "marker": marker} for name, (colour, marker) in styles.items()} | dict(more)
    handles = [Line2D([], [], label=name, **({"linestyle": ""} | dict(look))) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
