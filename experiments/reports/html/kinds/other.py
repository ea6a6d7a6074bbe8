"""Any results.json: each list of records in it is a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.reports.html.charts import number
from experiments.reports.html.page import Page, Table
from experiments.reports.html.words import facts

_ROWS = 500  # of a table at most


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    tables = [_table(name, rows) for name, rows in report.items() if _records(rows)]
    lists = {name for name, rows in report.items() if _records(rows)}
    known = {"settings", "machine", "versions", "command", "date", "model"}
    rest = {name: value for name, value in report.items() if name not in lists | known}
    if rest:
        tables.append(Table("Further figures", ["name", "value"], [list(pair) for pair in _flat(rest)]))
    return Page(title=f"Results in {folder.name or folder.resolve().name}", facts=facts(report), tables=tables)


def _records(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, Mapping) for row in rows)


def _table(name: str, rows: list[Mapping[str, Any]]) -> Table:
    flat = [dict(_flat(row)) for row in rows[:_ROWS]]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    more = f" (the first {_ROWS} of {len(rows)})" if len(rows) > _ROWS else ""
    return Table(f"{name}{more}", columns, [[row.get(column, "") for column in columns] for row in flat])


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names such as `accuracy.overall.share`, and what is there as text."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, float):
        yield name, number(value)
    else:
        yield name, "" if value is None else str(value)
