"""Anyone's comparisons on one page: the rows of several results folders that asked the same in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core.journal import differing
from experiments.core.results import format_seconds
from experiments.reports.compare_tables import REFERENCE, parts, quality
from experiments.reports.html import reading
from experiments.reports.html.page import Page, Table
from experiments.reports.tables import Column, percent, points, with_interval
from models.errors import CommandError

KIND = "compare"
_MAY_DIFFER = ("machine", "model_sha256", "versions", "workers", "rounds", "batch_size", "bucket", "decode_capacity")
"""Settings that do not change what is asked; all others are the protocol, the code's hash among them."""


def page(folders: Sequence[Path]) -> Page:
    """The board of several folders.

    Raises:
      CommandError: a folder is not a comparison's, does not say what made it, was made with another protocol, calls
        other weights by the same name, or repeats rows of another folder.
      LookupError, TypeError, ValueError: a results.json is damaged.
    """
    found, notes = list[tuple[Path, dict[str, Any]]](), list[str]()
    for folder in folders:
        report, odd = reading.results(folder)
        _check(folder, report)
        found.append((folder, report))
        notes += odd
    _check_protocol(found)
    _check_weights(found)
    _check_repeated(found)
    rows = [_row(folder, report, row) for folder, report in found for row in report["rows"]]
    models = dict.fromkeys(row["model"] for row in rows)
    tables = [
        _table(f"{model}. {title}", own)
        for model in models
        for title, own in _parts([row for row in rows if row["model"] == model])
    ]
    source = found[0][1]["source"]
    facts = [(str(folder), f"{report['model']}, {report['date'][:10]}, {_machine(report)}") for folder, report in found]
    lead = (
        f"{len({row['method'] for row in rows})} methods from {len(found)} runs on {source}, all asked in the same way."
    )
    return Page(title="The board", lead=lead, facts=facts, tables=tables, notes=notes)


def _check(folder: Path, report: Mapping[str, Any]) -> None:
    if (kind := report.get("kind")) != KIND:
        raise CommandError(f"{folder} is of {kind or 'an unknown command'}; a board takes folders of {KIND}")
    settings = report.get("settings", {})
    if missing := [name for name in ("model_sha256", "code_sha256", "versions", "machine") if name not in settings]:
        raise CommandError(f"{folder} does not say what made it: {', '.join(missing)} missing; run compare again")


def _check_protocol(found: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    """Raise where two folders were not asked the same in the same way."""
    protocols = [
        {"source": report["source"], **{k: v for k, v in report["settings"].items() if k not in _MAY_DIFFER}}
        for _, report in found
    ]
    for (folder, _), own in zip(found, protocols, strict=True):
        if names := differing(protocols[0], own):
            raise CommandError(f"{found[0][0]} and {folder} differ in {', '.join(names)}; a board has one protocol")


def _check_weights(found: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    known: dict[str, tuple[Path, str]] = {}
    for folder, report in found:
        weights = report["settings"]["model_sha256"]
        other, known_weights = known.setdefault(report["model"], (folder, weights))
        if weights != known_weights:
            raise CommandError(f"{other} and {folder} call different weights {report['model']!r}; rename one of them")


def _check_repeated(found: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    known: dict[tuple[Any, ...], int] = {}
    for number, (folder, report) in enumerate(found):
        for key in {(report["settings"]["model_sha256"], _machine(report), row.get("cell")) for row in report["rows"]}:
            other = known.setdefault(key, number)
            # Vanilla is in every comparison, and TokenCarve at whose cost compute is equal.
            if other != number and key[2] and str(key[2]).split(" (")[0] not in ("vanilla", REFERENCE):
                raise CommandError(
                    f"{found[other][0]} and {folder} both have {key[2]} on the same machine; leave one out"
                )


def _machine(report: Mapping[str, Any]) -> str:
    machine = report["settings"]["machine"]
    return str(machine["device"] if machine.get("backend") not in (None, "cpu") else machine.get("processor"))


def _row(folder: Path, report: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    versions = report["settings"]["versions"]
    about = {"model": report["model"], "folder": str(folder), "machine": _machine(report), "jax": versions["jax"]}
    return {**row, **about}


def _parts(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Tables of one model, the best first; vanilla once for each machine."""
    vanilla = {row["machine"]: row for row in rows if row["basis"] is None}
    first = next(iter(vanilla.values()))
    seen = {(row["method"], row["basis"], row["budget"], row["machine"]): row for row in rows if row["basis"]}
    return [
        (title, [*vanilla.values(), *sorted(own[1:], key=quality, reverse=True)])
        for title, own in parts([first, *seen.values()])
    ]


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("tokens", lambda row: str(row["tokens"])),
        (
            "right",
            lambda row: with_interval(row["accuracy"]["overall"]) if row["accuracy"] else percent(row["same_answer"]),
        ),
        ("vs vanilla", lambda row: points(*(row["to_vanilla"] or [None]))),
        ("GFLOP", lambda row: f"{row['flops'] / 1e9:.2f}"),
        ("prefill", lambda row: format_seconds(row["prefill_s"])),
        ("machine", lambda row: row["machine"]),
        ("jax", lambda row: row["jax"]),
        ("folder", lambda row: row["folder"]),
    ]
    return Table.of(title, columns, rows)
