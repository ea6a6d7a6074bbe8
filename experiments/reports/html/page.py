"""What a page consists of: numbers and texts, and nothing of how they look."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reports import tables
from experiments.reports.tables import Column


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for people."""

    caption: str
    columns: Sequence[str]  # heads; the first column names the row
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()  # rows that are set off

    @classmethod
    def of(cls, caption: str, columns: Sequence[Column], rows: Iterable[Any], strong: Iterable[int] = ()) -> Table:
        """From rows of any kind, and what each column shows of them."""
        heads, *texts = tables.cells(columns, rows)
        return cls(caption, heads, texts, frozenset(strong))


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart, with the same numbers as a table."""

    title: str
    text: str  # what one has to know to read it
    chart: dict[str, Any]  # for the page's script, see `experiments.reports.html.charts`
    table: Table


@dataclasses.dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    lead: str = ""  # the finding in a sentence or two
    highlights: Sequence[tuple[str, str]] = ()  # the first numbers that one sees, each with what it is
    facts: Sequence[tuple[str, str]] = ()  # what was run, by name
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()  # what one has to know to read the tables
    gallery: dict[str, Any] | None = None  # for the page's script, see `experiments.reports.html.scenes`


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
