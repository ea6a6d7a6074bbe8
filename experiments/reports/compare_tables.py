"""Tables of a comparison's rows: for a terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.core.results import format_bytes, format_seconds
from experiments.reports import tables
from experiments.reports.tables import Column, percent, points

Rows = Sequence[Mapping[str, Any]]
REFERENCE = "tokencarve"
COUNT, COMPUTE, GIVEN = "count", "compute", "given"  # bases
_TITLES = {
    COUNT: "Equal count: {} visual tokens left",
    COMPUTE: "Equal compute: no more FLOPs than TokenCarve at {}",
    GIVEN: "Schedules as given",
}
_HEADS = {COUNT: "{} left", COMPUTE: "cost of {}", GIVEN: "as given"}


def quality(row: Mapping[str, Any]) -> float:
    """The share of right answers, or of vanilla's where nobody knows the right ones."""
    return row["same_answer"] if row["accuracy"] is None else row["accuracy"]["overall"]["share"]


def parts(rows: Rows) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """A title and rows, vanilla first, for each budget and basis; the most accurate methods first."""
    out = []
    for basis, budget in dict.fromkeys((row["basis"], row["budget"]) for row in rows[1:]):
        own = [row for row in rows[1:] if (row["basis"], row["budget"]) == (basis, budget) and not row["why_not"]]
        own.sort(key=quality, reverse=True)
        out.append((_TITLES[basis].format(budget), [rows[0], *own]))
    return out


def plain(rows: Rows) -> str:
    """A line a method, with the share of right answers (or of vanilla's) by basis and budget."""
    columns = list(dict.fromkeys((row["basis"], row["budget"]) for row in rows[1:]))
    found = {(row["method"], row["basis"], row["budget"]): row for row in rows[1:] if not row["why_not"]}
    head = ["", *(_HEADS[basis].format(budget) for basis, budget in columns), "own time", "prefill"]
    texts = [head, [rows[0]["method"], *[_half(rows[0])] * len(columns), "", format_seconds(rows[0]["prefill_s"])]]
    for name in dict.fromkeys(row["method"] for row in sorted(found.values(), key=quality, reverse=True)):
        own = [found.get((name, *column)) for column in columns]
        last = next(row for row in reversed(own) if row is not None)
        shown = ["" if row is None else f"{row['tokens']}: {_half(row)}" for row in own]
        texts.append([name, *shown, format_seconds(last["own_s"]), format_seconds(last["prefill_s"])])
    return tables.plain(texts)


def _half(row: Mapping[str, Any]) -> str:
    """The share with half of its interval."""
    if row["accuracy"] is None:
        return f"{100 * quality(row):.1f}"
    overall = row["accuracy"]["overall"]
    return f"{100 * overall['share']:.1f} ± {50 * (overall['high'] - overall['low']):.1f}"


def markdown(rows: Rows) -> str:
    """All columns, a table for each budget and basis."""
    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("tokens", lambda row: str(row["tokens"])),
        ("layer average", lambda row: f"{row['average']:.0f}"),
        *((name, lambda row, name=name: _share(row["accuracy"][name])) for name in rows[0]["accuracy"] or ()),
        ("of vanilla", lambda row: percent(row["of_vanilla"])),
        ("vs vanilla", lambda row: _points(row["to_vanilla"])),
        ("vs tokencarve", lambda row: _points(row["to_reference"])),
        ("same answer", lambda row: percent(row["same_answer"])),
        ("same first token", lambda row: percent(row["same_first_token"])),
        ("KL mean / max", lambda row: f"{row['kl_mean']:.3f} / {row['kl_max']:.2f}"),
        ("GFLOP (XLA's)", lambda row: f"{row['flops'] / 1e9:.2f} ({_giga(row['xla_flops'])})"),
        ("own time", lambda row: format_seconds(row["own_s"])),
        ("prefill", lambda row: format_seconds(row["prefill_s"])),
        ("KV cache", lambda row: format_bytes(row["cache_bytes"])),
    ]
    return "\n\n".join(f"### {title}\n\n{tables.markdown(tables.cells(columns, own))}" for title, own in parts(rows))


def csv_text(rows: Rows) -> str:
    """Every number of every row, nested ones as `accuracy.overall.share`; RFC 4180."""
    flat = [_flat(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, list):  # a difference
        value = dict(zip(("value", "half_width"), value, strict=True))
    if not isinstance(value, Mapping):
        return {name: value}
    inner = [_flat(part, f"{name}.{key}" if name else key) for key, part in value.items()]
    return {key: one for part in inner for key, one in part.items()}


def _share(found: Mapping[str, Any]) -> str:
    return f"{100 * found['share']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _giga(count: float | None) -> str:
    return "n/a" if count is None else f"{count / 1e9:.2f}"


def _points(difference: Sequence[Any] | None) -> str:
    return "" if difference is None else points(*difference)
