"""Charts as the page's script takes them: what is drawn, in numbers; colours and sizes are the script's.

{"kind": "points", "x": title, "y": title, "series": [{"name", "x": [...], "y": [...], "low", "high"}], "line"?}
{"kind": "bars", "x": title, "names": [...], "series": [{"name", "values": [...]}]}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.reports.html.page import Figure, Table


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a chart.

    Attributes:
      x: across.
      y: up.
      low: lower end of its interval; None for none.
      high: upper end.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None


def points(
    title: str, text: str, *, x: str, y: str, series: Mapping[str, Sequence[Point]], lines: bool = False
) -> Figure:
    """Points of several series, each joined by a line; the table has a row for each point.

    Args:
      title: of the figure.
      text: below it.
      x: what is across.
      y: what is up.
      series: by name.
      lines: draw no intervals and small points.
    """
    ordered = {name: sorted(own, key=lambda point: point.x) for name, own in series.items()}
    with_interval = any(point.low is not None for own in ordered.values() for point in own)
    chart = {
        "kind": "points",
        "x": x,
        "y": y,
        "small": lines,
        "series": [
            {
                "name": name,
                "x": [point.x for point in own],
                "y": [point.y for point in own],
                "low": [point.low for point in own] if with_interval else None,
                "high": [point.high for point in own] if with_interval else None,
            }
            for name, own in ordered.items()
        ],
    }
    rows = [
        [name, number(point.x), number(point.y), *([_interval(point)] if with_interval else [])]
        for name, own in ordered.items()
        for point in own
    ]
    columns = ["", x, y, *(["95 % interval"] if with_interval else [])]
    return Figure(title, text, chart, Table(title, columns, rows))


def bars(
    title: str, text: str, *, x: str, names: Sequence[str], series: Mapping[str, Sequence[float | None]]
) -> Figure:
    """Bars of several series beside each other, one group for each name; the table has a row for each name."""
    chart = {
        "kind": "bars",
        "x": x,
        "names": list(names),
        "series": [{"name": name, "values": list(values)} for name, values in series.items()],
    }
    rows = [[name, *(number(values[i]) for values in series.values())] for i, name in enumerate(names)]
    columns = ["", *(f"{name} ({x})" if name else x for name in series)]
    return Figure(title, text, chart, Table(title, columns, rows))


def number(value: float | None) -> str:
    """For people: 0.0412 -> "0.0412", 12.345 -> "12.3", 576 -> "576".

    >>> number(0.0412), number(12.345), number(576), number(None)
    ('0.0412', '12.3', '576', 'n/a')
    """
    if value is None:
        return "n/a"
    return str(int(value)) if value == int(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _interval(point: Point) -> str:
    return "" if point.low is None else f"{number(point.low)} to {number(point.high)}"
