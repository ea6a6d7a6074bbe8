"""From what a run measured to figures: per method, and across methods."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.core.methods import BASELINE
from experiments.metrics.correlation import KINDS, correlate
from experiments.metrics.summary import share

TOKENS = ("all", "visual")  # those whose attention output is measured
MEASURES = ("rank", "effective_rank", "entropy")
OUTCOMES = ("accuracy", "same_answer")

Rows = Sequence[Mapping[str, Any]]


def row(
    predictions: Sequence[str],
    measured: Mapping[str, Mapping[str, Any]],
    *,
    answers: Sequence[str],
    vanilla: Sequence[str],
    first: int,
) -> dict[str, Any]:
    """A method's figures, means over Q questions.

    Args:
      predictions: Q answers.
      measured: by kind of token `rank` and `entropy`, [Q, L] each for the L layers that are measured.
      answers: the right ones.
      vanilla: what the model answers without a cut.
      first: the first layer behind every cut.

    Returns:
      JSON types: `accuracy` with its interval, `same_answer`; by kind of token and measure `layers`, a mean per layer,
      and `behind_cut`, the mean over layers from `first` on.
    """
    layers = {}
    for part, own in measured.items():
        rank, entropy = (np.asarray(own[name], float) for name in ("rank", "entropy"))
        values = {"rank": rank, "effective_rank": np.exp(entropy), "entropy": entropy}
        layers[part] = {name: values[name].mean(0).tolist() for name in MEASURES}
    return {
        "accuracy": share([one == other for one, other in zip(predictions, answers, strict=True)]),
        "same_answer": share([one == other for one, other in zip(predictions, vanilla, strict=True)]),
        "layers": layers,
        "behind_cut": {
            part: {name: float(np.mean(values[first:])) for name, values in own.items()} for part, own in layers.items()
        },
    }


def budgets(rows: Rows) -> dict[int, list[Mapping[str, Any]]]:
    """The carved methods' rows by visual tokens, most first."""
    kept = sorted({row["visual_tokens"] for row in rows if row["method"] != BASELINE}, reverse=True)
    return {n: [row for row in rows if row["method"] != BASELINE and row["visual_tokens"] == n] for n in kept}


def depth(rows: Rows) -> int:
    """How many layers are measured."""
    return len(rows[0]["layers"][TOKENS[0]]["rank"])


def correlations(rows: Rows, *, first: int) -> list[dict[str, Any]]:
    """Every measure against every outcome, across the carved methods.

    Args:
      rows: of all methods, from `row`, with `method`, `place` and `visual_tokens`.
      first: the first layer behind every cut. Before it, methods differ in where they cut and not in what they keep.

    Returns:
      One dict per place where methods cut (None: any), budget (None: all of them, each without its own mean), kind of
      token, measure, layer (None: the mean over layers from `first` on), outcome and kind of correlation, with the
      figures of `correlate`. Methods of one place alone are compared by the mean over layers.
    """
    by_budget = budgets(rows)
    places = [None, *dict.fromkeys(row["place"] for row in rows if row["method"] != BASELINE)]
    out = []
    for place, kept in itertools.product(places, [*by_budget, *([None] if len(by_budget) > 1 else [])]):
        columns = [  # every budget has the same methods in the same order
            [row for row in own if place in (None, row["place"])] for n, own in by_budget.items() if kept in (None, n)
        ]
        shares = {name: [[row[name]["share"] for row in column] for column in columns] for name in OUTCOMES}
        layers = [None, *(range(first, depth(rows)) if place is None else ())]
        for part, name, layer in itertools.product(TOKENS, MEASURES, layers):
            x = np.array([[_value(row, part, name, layer) for row in column] for column in columns], float).T
            about = {"place": place, "visual_tokens": kept, "tokens": part, "measure": name, "layer": layer}
            for outcome, kind in itertools.product(OUTCOMES, KINDS):
                found = correlate(x, np.array(shares[outcome], float).T, kind)
                out.append(about | {"with": outcome, "kind": kind, "methods": len(x)} | found)
    return out


def _value(row: Mapping[str, Any], part: str, name: str, layer: int | None) -> float:
    return row["behind_cut"][part][name] if layer is None else row["layers"][part][name][layer]


def csv_text(rows: Rows) -> str:
    """One line per method, budget, layer and kind of token."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ["method", "place", "visual_tokens", "accuracy", "accuracy_low", "accuracy_high", "same_answer"]
    writer.writerow([*head, "layer", "tokens", *MEASURES])
    for row, part, layer in itertools.product(rows, TOKENS, range(depth(rows))):
        about = [row[name] for name in head[:3]] + [row["accuracy"][name] for name in ("share", "low", "high")]
        figures = [row["layers"][part][name][layer] for name in MEASURES]
        writer.writerow([*about, row["same_answer"]["share"], layer, part, *figures])
    return file.getvalue()
