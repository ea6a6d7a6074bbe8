"""From what a run measured to figures: per method, and across methods.

Axis letters: Q questions, L layers whose attention output is measured.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.metrics.correlation import KINDS, correlate
from experiments.metrics.summary import BASELINE, share

MEASURES = ("rank", "effective_rank", "entropy")
OUTCOMES = ("accuracy", "same_answer")


@dataclasses.dataclass(frozen=True)
class Found:
    """What one method said and did.

    Attributes:
      said: Q answers.
      measures: by kind of token and name of the measure, [Q, L] float64.
    """

    said: list[str]
    measures: dict[str, dict[str, np.ndarray]]


def gather(entries: Sequence[Mapping[str, Any]], tokens: Sequence[str], questions: int) -> Found:
    """Join a method's entries of the journal, in the order of the questions, of which there are so many."""
    said = [text for entry in entries for text in entry["said"]][:questions]
    measures = {}
    for part in tokens:
        rank, entropy = (
            np.array([layers for entry in entries for layers in entry[part][name]], float)[:questions]
            for name in ("rank", "entropy")
        )
        measures[part] = {"rank": rank, "effective_rank": np.exp(entropy), "entropy": entropy}
    return Found(said, measures)


def row(found: Found, answers: Sequence[str], vanilla: Sequence[str], *, first: int) -> dict[str, Any]:
    """A method's figures, means over questions.

    Args:
      found: of the method.
      answers: the right ones.
      vanilla: what the model says without a cut.
      first: the first layer behind every cut.

    Returns:
      JSON types: `accuracy` with its interval, `same_answer`; by kind of token and measure `layers`, a mean per layer,
      and `behind_cut`, the mean over layers from `first` on.
    """
    right = [text == answer for text, answer in zip(found.said, answers, strict=True)]
    same = [text == other for text, other in zip(found.said, vanilla, strict=True)]
    layers = {
        part: {name: values.mean(0).tolist() for name, values in measures.items()}
        for part, measures in found.measures.items()
    }
    return {
        "accuracy": share(right),
        "same_answer": share(same),
        "layers": layers,
        "behind_cut": {
            part: {name: float(np.mean(values[first:])) for name, values in measures.items()}
            for part, measures in layers.items()
        },
    }


def budgets(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """The carved methods' rows by visual tokens, most first."""
    kept = sorted({row["visual_tokens"] for row in rows if row["method"] != BASELINE}, reverse=True)
    return {n: [row for row in rows if row["method"] != BASELINE and row["visual_tokens"] == n] for n in kept}


def correlations(rows: Sequence[Mapping[str, Any]], tokens: Sequence[str], *, first: int) -> list[dict[str, Any]]:
    """Every measure against every outcome, across the carved methods.

    Args:
      rows: of all methods, from `row`, with `method` and `visual_tokens`.
      tokens: kinds of tokens.
      first: the first layer behind every cut. Before it, methods differ in where they cut and not in what they keep.

    Returns:
      One dict per place where methods cut (None: any), budget (None: all of them, each without its own mean), kind of
      token, measure, layer (None: the mean over layers from `first` on), outcome and kind of correlation; where there
      is none, its figures are None. Methods of one place alone are compared by the mean over layers.
    """
    by_budget = budgets(rows)
    layers = [None, *range(first, len(next(iter(rows[0]["layers"].values()))["rank"]))]
    places = [None, *dict.fromkeys(row["place"] for row in rows if row["method"] != BASELINE)]
    out = []
    for place, kept in ((p, k) for p in places for k in (*by_budget, *([None] if len(by_budget) > 1 else []))):
        columns = [
            [row for row in own if place in (None, row["place"])] for n, own in by_budget.items() if kept in (None, n)
        ]
        spots = ((part, name, i) for part in tokens for name in MEASURES for i in (layers if place is None else [None]))
        for part, name, layer in spots:
            x = _columns(columns, functools.partial(_measure, part=part, name=name, layer=layer))
            for outcome, kind in ((o, k) for o in OUTCOMES for k in KINDS):
                y = _columns(columns, functools.partial(_share, outcome=outcome))
                found = correlate(x, y, kind)
                figures = dict.fromkeys(("value", "low", "high", "p")) if found is None else dataclasses.asdict(found)
                about = {"place": place, "visual_tokens": kept, "tokens": part, "measure": name, "layer": layer}
                out.append(about | {"with": outcome, "kind": kind, "methods": len(x)} | figures)
    return out


def _measure(row: Mapping[str, Any], *, part: str, name: str, layer: int | None) -> float:
    return row["behind_cut"][part][name] if layer is None else row["layers"][part][name][layer]


def _share(row: Mapping[str, Any], *, outcome: str) -> float:
    return row[outcome]["share"]


def _columns(columns: Sequence[Sequence[Mapping[str, Any]]], value: Callable[[Mapping[str, Any]], float]) -> np.ndarray:
    """[methods, budgets]; every budget has the same methods in the same order."""
    return np.array([[value(row) for row in column] for column in columns], float).T


def csv_text(rows: Sequence[Mapping[str, Any]], tokens: Sequence[str]) -> str:
    """One line per method, budget, layer and kind of token."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ["method", "place", "visual_tokens", "accuracy", "accuracy_low", "accuracy_high", "same_answer"]
    writer.writerow([*head, "layer", "tokens", *MEASURES])
    for row in rows:
        accuracy = [row["accuracy"][name] for name in ("share", "low", "high")]
        about = [row["method"], row["place"], row["visual_tokens"], *accuracy, row["same_answer"]["share"]]
        for part in tokens:
            for layer, figures in enumerate(zip(*(row["layers"][part][name] for name in MEASURES), strict=True)):
                writer.writerow([*about, layer, part, *figures])
    return file.getvalue()
