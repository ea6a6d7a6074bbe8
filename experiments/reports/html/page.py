"""What a page consists of: numbers and texts, and nothing of how they look."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
      caption: what it is of.
      columns: their heads; the first column names the row.
      rows: texts.
      strong: numbers of the rows that are set off.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart, with the same numbers as a table.

    Attributes:
      title: what is seen.
      text: what one has to know to read it.
      chart: for the page's script, see `experiments.reports.html.charts`.
      table: the same in words.
    """

    title: str
    text: str
    chart: dict[str, Any]
    table: Table


@dataclasses.dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
      title: of the page.
      lead: the finding in a sentence or two.
      highlights: the first numbers that one sees, each with what it is.
      facts: what was run, by name.
      tables: all of them.
      figures: all charts.
      notes: what one has to know to read the tables.
      gallery: scenes for the page's script, see `experiments.reports.html.scenes`; None where there are none.
    """

    title: str
    lead: str = ""
    highlights: Sequence[tuple[str, str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    gallery: dict[str, Any] | None = None
