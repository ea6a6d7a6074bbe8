"""Charts as the page's script takes them: what is drawn, in numbers; colours and sizes are the script's.

{"kind": "points", "x": title, "y": title, "small", "series": [{"name", "x": [...], "y": [...], "low", "high"}]}
{"kind": "bars", "x": title, "names": [...], "series": [{"name", "values": [...]}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reports.html.page import Figure, Table
from experiments.reports.tables import Column, missing, number, percent

Point = tuple[float, ...]
"""x and y, and where it has a 95 % interval, its lower and upper end."""

RIGHT, AS_VANILLA = "right answers, %", "answers as with all visual tokens, %"


def overall(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A method's share of right answers over all families of questions; None where nobody knows what is right."""
    accuracy = row["accuracy"]
    return accuracy.get("overall", accuracy) if accuracy else None


def family(name: str) -> Column:
    """The column of a family of questions."""
    return name, lambda row: percent(row["accuracy"][name]["share"])


def quality(row: Mapping[str, Any]) -> float:
    """The share of right answers, or of vanilla's where nobody knows the right ones."""
    found = overall(row)
    return (row["same_answer"] or 0) if found is None else found["share"]


def accuracy_at(x: float, row: Mapping[str, Any]) -> Point:
    """A method's `quality` in percent as a point at x."""
    found = overall(row)
    shares = [quality(row)] if found is None else [found[name] for name in ("share", "low", "high")]
    return (x, *(100 * share for share in shares))


def points(
    title: str, text: str, *, x: str, y: str, series: Mapping[str, Sequence[Point]], small: bool = False
) -> Figure:
    """Points of several series, each joined by a line; the table has a row for each point.

    Args:
      title: of the figure.
      text: below it.
      x: what is across.
      y: what is up.
      series: by name; either all points have an interval or none.
      small: draw small points.
    """
    ordered = {name: sorted(own, key=lambda point: point[0]) for name, own in series.items()}
    whiskers = any(len(point) > 2 for own in ordered.values() for point in own)

    def drawn(name: str, own: Sequence[Point]) -> dict[str, Any]:
        found: dict[str, Any] = {"name": name, "low": None, "high": None}
        return found | dict(zip(("x", "y", "low", "high"), map(list, zip(*own, strict=True)), strict=False))

    chart = {"kind": "points", "x": x, "y": y, "small": small, "series": [drawn(*one) for one in ordered.items()]}
    rows = []
    for name, point in ((name, point) for name, own in ordered.items() for point in own):
        rows.append([name, *map(number, point[:2]), *([" to ".join(map(number, point[2:]))] if whiskers else [])])
    columns = ["", x, y, *(["95 % interval"] if whiskers else [])]
    return Figure(title, text, chart, Table(title, columns, rows))


def bars(
    title: str, text: str, *, x: str, names: Sequence[str], series: Mapping[str, Sequence[float | None]]
) -> Figure:
    """Bars of several series beside each other, one group for each name; the table has a row for each name."""
    groups = [{"name": name, "values": list(values)} for name, values in series.items()]
    columns = ["", *(f"{name} ({x})" if name else x for name in series)]
    rows = [[name, *map(number, values)] for name, *values in zip(names, *series.values(), strict=True)]
    return Figure(
        title, text, {"kind": "bars", "x": x, "names": list(names), "series": groups}, Table(title, columns, rows)
    )


def for_script(chart: Any) -> Any:
    """A chart as JSON can hold it: what is not a number is null."""
    if isinstance(chart, dict):
        return {name: for_script(part) for name, part in chart.items()}
    if isinstance(chart, list):
        return [for_script(part) for part in chart]
    return None if isinstance(chart, float) and missing(chart) else chart
