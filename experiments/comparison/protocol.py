"""The protocol: what a table of accuracies does not tell about a method, from the same answers.

- Floors: every row beside random tokens and the down-sampled image at the same budget.
- Groups (VTC-Bench, arXiv 2510.07143): of the questions that vanilla answers, those that the down-sampled image answers
  too, and those that it does not; the second alone need what compression is meant to keep.
- Layers (the information horizon, arXiv 2512.07580): accuracy, and how much less likely vanilla's answer gets, against
  the layer of the cut; where all visual tokens but one can go unpunished, they tell nothing any more.
- Turns: a second question about another thing, on the tokens that the first one left.
- Positions (RESTORE's ablation): survivors renumbered as released, at their own positions, or around their median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from experiments.comparison.cells import DOWNSAMPLED, FORMS, RANDOM, AtLayer, Line
from experiments.core.methods import BASELINE
from experiments.data.questions import QuestionSet
from experiments.evaluation.answers import Answers
from experiments.metrics.summary import paired_difference, share
from experiments.reports.compare_tables import COUNT

Right = Mapping[str, Sequence[bool]]


def floors(lines: Sequence[Line], right: Right, scenes: Sequence[int]) -> list[dict[str, Any]]:
    """What each line gains over random tokens and over the down-sampled image, paired by question."""
    keys = {(line.method, line.basis, line.budget): line.key for line in lines if line.key}
    found = []
    for line in lines:
        if line.key is None or line.budget is None or line.method in (RANDOM, DOWNSAMPLED):
            continue
        over = {}
        for floor, basis in ((RANDOM, line.basis), (DOWNSAMPLED, COUNT)):
            other = keys.get((floor, basis, line.budget))
            over[floor] = None if other is None else paired_difference(right[other], right[line.key], scenes)
        about = {"method": line.method, "basis": line.basis, "budget": line.budget}
        found.append(about | {"accuracy": share(right[line.key]), "over": over})
    return found


def groups(lines: Sequence[Line], right: Right) -> list[dict[str, Any]]:
    """Shares of right answers by VTC-Bench's groups, at equal count.

    "hard" are the questions that vanilla answers and the down-sampled image of that budget does not, "easy" those that
    both answer; None for a group without questions.
    """
    found = []
    down = {line.budget: line.key for line in lines if line.method == DOWNSAMPLED and line.key}
    for line in lines:
        if line.basis != COUNT or line.key is None or line.method == DOWNSAMPLED or line.budget not in down:
            continue
        pairs = zip(right[BASELINE], right[str(down[line.budget])], right[line.key], strict=True)
        parts: dict[str, list[bool]] = {"hard": [], "easy": []}
        for whole, small, own in pairs:
            if whole:
                parts["easy" if small else "hard"].append(own)
        shares = {name: share(own) if own else None for name, own in parts.items()}
        found.append({"method": line.method, "budget": line.budget, **shares})
    return found


def layers(places: Sequence[AtLayer], right: Right, lost: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """By method and layer of the cut: share of right answers, and the mean loss in vanilla's answer's probability.

    The latter is None where nothing is known of it.
    """
    return [
        {
            "method": place.method,
            "layer": place.layer,
            "kept": place.kept,
            "accuracy": share(right[place.key]),
            "lost": mean(own) if (own := lost[place.key]) else None,
        }
        for place in places
    ]


def horizon(found: Sequence[Mapping[str, Any]], vanilla: float, *, tolerance: float = 0.01) -> int | None:
    """The first layer from which on one visual token is as good as all, within `tolerance` of vanilla's accuracy.

    >>> rows = [{"kept": 1, "layer": layer, "accuracy": {"share": s}} for layer, s in ((1, 0.4), (3, 0.9), (5, 0.95))]
    >>> horizon(rows, 0.9), horizon(rows, 0.94), horizon(rows, 0.99)
    (3, 5, None)
    """
    last = None
    for row in sorted((row for row in found if row["kept"] == 1), key=lambda row: -row["layer"]):
        if row["accuracy"]["share"] < vanilla - tolerance:
            break
        last = row["layer"]
    return last


def positions(lines: Sequence[Line], right: Right, scenes: Sequence[int]) -> list[dict[str, Any]]:
    """Methods that come in several forms: the share of right answers in each, and what renumbering costs."""
    keys = {(line.method, line.budget): line.key for line in lines if line.basis == COUNT and line.key}
    found = []
    for (method, budget), key in keys.items():
        forms = {form: keys[own] for form, suffix in FORMS.items() if (own := (method + suffix, budget)) in keys}
        if len(forms) > 1:
            shares = {form: share(right[str(own)]) for form, own in forms.items()}
            cost = paired_difference(right[str(key)], right[str(forms["kept"])], scenes) if "kept" in forms else None
            found.append({"method": method, "budget": budget, "forms": shares, "kept_gains": cost})
    return found


def turns(
    names: Mapping[str, str],
    then: Mapping[int, int],
    second: Mapping[str, Mapping[int, bool]],
    right: Right,
    rows: Mapping[int, int],
    scenes: Sequence[int],
) -> list[dict[str, Any]]:
    """Right answers to the second question: behind the first one, and when it is asked alone.

    Args:
      names: of methods by cell.
      then: the second question by the first.
      second: by cell and first question, whether the second was answered rightly behind it.
      right: by cell and row.
      rows: of `right`, by question.
      scenes: by row.
    """
    firsts = [first for first, other in then.items() if other in rows]
    found = []
    for key, method in names.items():
        behind = [second[key][first] for first in firsts]
        alone = [right[key][rows[then[first]]] for first in firsts]
        groups_of = [scenes[rows[then[first]]] for first in firsts]
        if firsts:
            costs = paired_difference(alone, behind, groups_of)
            found.append({"method": method, "second": share(behind), "alone": share(alone), "behind_first": costs})
    return found


def protocol(
    lines: Sequence[Line],
    places: Sequence[AtLayer],
    answers: Answers,
    questions: QuestionSet,
    then: Mapping[int, int],
    second: Mapping[str, Mapping[int, bool]],
) -> dict[str, Any] | None:
    """All of it, as JSON types; None where no right answers are known."""
    right, about = answers.scored(questions)
    if not about:
        return None
    scenes = [record["scene"] for record in about]
    lost = {place.key: answers.column(place.key, "lost") for place in places}
    names = {BASELINE: BASELINE} | {
        str(line.key): line.method for line in lines if line.key in second and line.basis == COUNT
    }
    found = turns(names, then, second, right, {record["sample"]: row for row, record in enumerate(about)}, scenes)
    return judged(lines, places, right, lost, scenes) | {"turns": found}


def judged(
    lines: Sequence[Line],
    places: Sequence[AtLayer],
    right: Right,
    lost: Mapping[str, Sequence[float]],
    scenes: Sequence[int],
) -> dict[str, Any]:
    """What right answers by cell tell alone, as JSON types; no second questions among it."""
    by_layer, vanilla = layers(places, right, lost), share(right[BASELINE])
    return {
        "vanilla": vanilla,
        "smallest": min((line.budget for line in lines if line.budget is not None), default=0),
        "floors": floors(lines, right, scenes),
        "groups": groups(lines, right),
        "layers": by_layer,
        "horizon": horizon(by_layer, vanilla["share"]),
        "turns": [],
        "positions": positions(lines, right, scenes),
    }
