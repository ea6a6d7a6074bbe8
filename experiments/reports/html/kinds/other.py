"""Any results.json: each list of records in it is a table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.reports.html.page import Page, Table, facts
from experiments.reports.html.reading import flat
from experiments.reports.tables import number

_ROWS, _COLUMNS, _LETTERS = 500, 50, 200  # of a table and of a text at most
_FACTS = {"settings", "machine", "versions", "command", "date", "model", "kind"}


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    lists = {name: rows for name, rows in report.items() if _records(rows)}
    tables = [_table(name, rows) for name, rows in lists.items()]
    rest = {name: value for name, value in report.items() if name not in {*lists, *_FACTS}}
    if rest:
        pairs = itertools.islice(_texts(rest).items(), _ROWS)
        tables.append(Table("Further figures", ["name", "value"], list(map(list, pairs))))
    return Page(title=f"Results in {folder.resolve().name}", facts=facts(report), tables=tables)


def _records(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, Mapping) for row in rows)


def _table(name: str, rows: list[Mapping[str, Any]]) -> Table:
    texts = [_texts(row) for row in rows[:_ROWS]]
    columns = list(dict.fromkeys(column for row in texts for column in row))
    more = [f"the first {_ROWS} of {len(rows)}"] if len(rows) > _ROWS else []
    more += [f"{_COLUMNS} of {len(columns)} columns"] if len(columns) > _COLUMNS else []
    columns = columns[:_COLUMNS]
    caption = f"{name} ({', '.join(more)})" if more else name
    return Table(caption, columns, [[row.get(column, "") for column in columns] for row in texts])


def _texts(value: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(part) for name, part in flat(value, lists=False)}


def _text(value: Any) -> str:
    text = "" if value is None else number(value) if isinstance(value, float) else str(value)
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]} …"
