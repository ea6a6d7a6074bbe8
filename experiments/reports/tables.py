"""Tables for terminals, files and pages. A column is its head, and what it shows of a row.

A number that does not exist is None, and one that is not a number NaN; neither stops a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Column = tuple[str, Callable[[Any], str]]


def cells(columns: Sequence[Column], rows: Iterable[Any]) -> list[list[str]]:
    """The texts of a table, its heads first.

    >>> cells([("method", str.lower), ("letters", lambda name: str(len(name)))], ["ToMe"])
    [['method', 'letters'], ['tome', '4']]
    """
    return [[head for head, _ in columns], *([show(row) for _, show in columns] for row in rows)]


def plain(texts: Sequence[Sequence[str]]) -> str:
    """For a terminal, from `cells`: the first column to the left, the others to the right.

    >>> print(plain([["", "left"], ["tome", "64"]]))
          left
    ----  ----
    tome    64
    """
    head, *rows = _padded(texts, least=0)
    return "\n".join("  ".join(line).rstrip() for line in (head, ["-" * len(cell) for cell in head], *rows))


def markdown(texts: Sequence[Sequence[str]]) -> str:
    """For a file, from `cells`: columns also as plain text; the first to the left, the others to the right.

    >>> print(markdown([["method", "left"], ["tome", "64"]]))
    | method | left |
    | ------ | ---: |
    | tome   |   64 |
    """
    head, *rows = _padded(texts, least=3)
    rule = ["-" * len(head[0]), *("-" * (len(cell) - 1) + ":" for cell in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def _padded(texts: Sequence[Sequence[str]], *, least: int) -> list[list[str]]:
    widths = [max(least, *map(len, column)) for column in zip(*texts, strict=True)]
    return [
        [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in texts
    ]


def missing(value: float | None) -> bool:
    """Whether there is nothing to show: None or NaN."""
    return value is None or math.isnan(value)


def ratio(above: float, below: float) -> float:
    """Their quotient; NaN where `below` is 0."""
    return above / below if below else math.nan


def number(value: float | None) -> str:
    """A number of any size.

    >>> number(0.0412), number(12.345), number(576), number(None)
    ('0.0412', '12.3', '576', 'n/a')
    """
    if value is None or missing(value):
        return "n/a"
    return str(int(value)) if value == int(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def percent(share: float | None) -> str:
    """0.912 -> "91.2 %"."""
    return "n/a" if share is None or missing(share) else f"{100 * share:.1f} %"


def with_interval(share: Mapping[str, Any] | None) -> str:
    """A share with half of its 95 % interval: "91.2 % ± 1.9"."""
    return "n/a" if share is None else f"{percent(share['share'])} ± {50 * (share['high'] - share['low']):.1f}"


def points(value: float | None, half_width: float | None = None) -> str:
    """A difference of shares in points: "-5.8 ± 1.5"."""
    if value is None or missing(value):
        return "n/a"
    return f"{100 * value:+.1f}" + ("" if half_width is None else f" ± {100 * half_width:.1f}")
