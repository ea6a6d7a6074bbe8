"""The protocol on benchmarks: what lmms-eval's marks of single questions and of whole sets tell about methods.

A question counts as right where lmms-eval gives it half of its mark or more. Where it marks a set as a whole alone, the
set has its score and nothing else. No two questions count as of one image, which marks do not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.comparison import published
from experiments.comparison.cells import DOWNSAMPLED, RANDOM, AtLayer, Line
from experiments.comparison.protocol import judged
from experiments.core.methods import BASELINE
from experiments.lmms.sets import Set
from experiments.lmms.tables import value
from experiments.reports.compare_tables import COUNT

Entries = Mapping[str, Mapping[str, Any]]
"""What is known of a set, by cell: its `metrics`, `marks` of questions, and what vanilla's first token lost."""
_RIGHT = 0.5


def protocol(
    sets: Sequence[Set], lines: Sequence[Line], places: Sequence[AtLayer], entries: Mapping[str, Entries]
) -> dict[str, Any]:
    """All of it, as JSON types.

    Args:
      sets: those that were marked.
      lines: of the tables.
      places: layers of cuts.
      entries: by set.

    Returns:
      `rows`, one for vanilla and each line, with scores by set; by set that has marks of questions, under `sets`, what
      `comparison.protocol.judged` makes of them; and `published`, as `comparison.published.agreement`.
    """
    rows, found = _rows(sets, lines, entries), dict[str, Any]()
    for one in sets:
        own = entries[one.name]
        if all(entry["marks"] for entry in own.values()):
            right = {key: [mark >= _RIGHT for mark in entry["marks"]] for key, entry in own.items()}
            lost = {place.key: own[place.key].get("lost", []) for place in places}
            questions = range(len(right[BASELINE]))
            found[one.figures[0].label] = judged(lines, places, right, lost, questions)
    known = [row for row in rows if row["of_vanilla"] is not None]
    order = published.agreement([row | {"accuracy": {"overall": {"share": row["of_vanilla"]}}} for row in known])
    return {"rows": rows, "sets": found, "published": order}


def _rows(sets: Sequence[Set], lines: Sequence[Line], entries: Mapping[str, Entries]) -> list[dict[str, Any]]:
    def scores(key: str) -> dict[str, float | None]:
        figures = {one.name: one.figures[0] for one in sets}
        return {figure.label: value(figure, entries[name][key]["metrics"]) for name, figure in figures.items()}

    whole, found = scores(BASELINE), dict[Any, dict[str, Any]]()
    cells = [Line(None, "", BASELINE, BASELINE), *(line for line in lines if line.key)]
    for line in cells:
        own = scores(str(line.key))
        shares = [own[name] / of for name, of in whole.items() if of and own[name] is not None]  # type: ignore[operator]
        found[line.method, line.basis, line.budget] = {
            "method": line.method,
            "basis": line.basis,
            "budget": line.budget,
            "why_not": "",
            "scores": own,
            "of_vanilla": fmean(shares) if shares else None,
        }
    for (method, basis, budget), row in found.items():
        row["over"] = {}
        for floor, where in ((RANDOM, basis), (DOWNSAMPLED, COUNT)):
            other = found.get((floor, where, budget), {}).get("of_vanilla")
            alone = method in (RANDOM, DOWNSAMPLED) or other is None or row["of_vanilla"] is None
            row["over"][floor] = None if alone else row["of_vanilla"] - other
    return list(found.values())
