"""What a page consists of: numbers and texts, and nothing of how they look."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reports import tables
from experiments.reports.tables import Column


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

    @classmethod
    def of(cls, caption: str, columns: Sequence[Column], rows: Iterable[Any], strong: Iterable[int] = ()) -> Table:
        """From rows of any kind, and what each column shows of them."""
        heads, *texts = tables.cells(columns, rows)
        return cls(caption, heads, texts, frozenset(strong))


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


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, and on what, as far as results.json says."""
    settings = report.get("settings", {})
    machine = report.get("machine", settings.get("machine", {}))
    versions = report.get("versions", settings.get("versions", {}))
    command = report.get("command") or ""
    packages = [name for name in ("python", "jax", "flax", "transformers") if name in versions]
    found = {
        "command": command if isinstance(command, str) else " ".join(map(str, command)),
        "model": report.get("model") or settings.get("preset"),
        "date": str(report.get("date") or "")[:10],
        "numbers": settings.get("dtype"),
        "seed": settings.get("seed"),
        "machine": f"{machine.get('processor') or ''}" + (f" ({machine['cores']} cores)" if "cores" in machine else ""),
        "device": machine.get("device") if machine.get("backend") not in (None, "cpu") else None,
        "versions": ", ".join(f"{name} {versions[name]}" for name in packages),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]
