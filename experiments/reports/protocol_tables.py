"""The protocol's tables, for terminals, files and pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reports import tables
from experiments.reports.compare_tables import COUNT
from experiments.reports.tables import Column, number, percent, points, with_interval


@dataclasses.dataclass(frozen=True)
class Section:
    """One table of the protocol.

    Attributes:
      title: above it.
      text: what its figures are, and whose definition that is.
      columns: of it.
      rows: of it; may be none.
    """

    title: str
    text: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]


def sections(found: Mapping[str, Any]) -> list[Section]:
    """All tables of a protocol that have rows, from `comparison.protocol.protocol`."""
    made = [_floors(found), _groups(found), _layers(found), _turns(found), _positions(found)]
    return [section for section in made if section.rows]


def of_benchmarks(found: Mapping[str, Any]) -> list[Section]:
    """Tables of several benchmarks, from `lmms.protocol.protocol`: all side by side, then those of each."""
    parts = [(label, section) for label, judged in found["sets"].items() for section in sections(judged)]
    return [_scores(found), *(dataclasses.replace(one, title=f"{label}: {one.title}") for label, one in parts)]


def plain(made: Sequence[Section]) -> str:
    """For a terminal."""
    return "\n\n".join(
        f"{one.title}\n{one.text}\n\n{tables.plain(tables.cells(one.columns, one.rows))}" for one in made
    )


def markdown(made: Sequence[Section]) -> str:
    """For a file."""
    return "\n\n".join(
        f"### {one.title}\n\n{one.text}\n\n{tables.markdown(tables.cells(one.columns, one.rows))}" for one in made
    )


def _scores(found: Mapping[str, Any]) -> Section:
    vanilla, *lines = found["rows"]
    lines = sorted(lines, key=lambda row: (row["basis"] != COUNT, -(row["budget"] or 0), -(row["of_vanilla"] or 0)))

    def score(label: str) -> Column:
        return label, lambda row: "" if row["scores"][label] is None else number(row["scores"][label])

    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("equal", lambda row: f"{row['basis']}, {row['budget']}" if row["basis"] else ""),
        *map(score, vanilla["scores"]),
        ("of vanilla", lambda row: percent(row["of_vanilla"])),
        *_OVER,
    ]
    text = (
        "Scores as lmms-eval gives them; the mean share of vanilla's score over the benchmarks, and how many points of "
        "it are gained over random tokens and over the down-sampled image at the same budget."
    )
    return Section("Benchmarks", text, columns, [vanilla, *lines])


def _difference(value: Sequence[Any] | float | None) -> str:
    return "" if value is None else points(value) if isinstance(value, float) else points(*value)


_OVER: list[Column] = [
    ("over random", lambda row: _difference(row["over"]["random"])),
    ("over down-sampled", lambda row: _difference(row["over"]["downsampled"])),
]


def _best_first(rows: Sequence[Mapping[str, Any]], what: str) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: -(row[what]["share"] if row[what] else -1))


def _floors(found: Mapping[str, Any]) -> Section:
    rows = sorted(found["floors"], key=lambda row: (row["basis"] != COUNT, -row["budget"], -row["accuracy"]["share"]))
    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("equal", lambda row: f"{row['basis']}, {row['budget']}"),
        ("right", lambda row: with_interval(row["accuracy"])),
        *_OVER,
    ]
    text = (
        "Points gained over random tokens at the same budget, and over the image at the resolution that has so many "
        "patches, on the same questions."
    )
    return Section("Above the floors", text, columns, rows)


def _groups(found: Mapping[str, Any]) -> Section:
    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("tokens left", lambda row: str(row["budget"])),
        ("down-sampling is wrong", lambda row: with_interval(row["hard"])),
        ("down-sampling is right", lambda row: with_interval(row["easy"])),
        ("questions", lambda row: " and ".join(str(row[name]["of"] if row[name] else 0) for name in ("hard", "easy"))),
    ]
    text = (
        "Of vanilla's right answers, how many a method keeps where the down-sampled image of as many patches fails, "
        "and where it does not (VTC-Bench, arXiv 2510.07143)."
    )
    rows = sorted(_best_first(found["groups"], "hard"), key=lambda row: -row["budget"])
    return Section("What down-sampling cannot answer", text, columns, rows)


def _layers(found: Mapping[str, Any]) -> Section:
    places = sorted({row["layer"] for row in found["layers"]})
    by_method: dict[tuple[str, int], dict[int, Any]] = {}
    for row in found["layers"]:
        by_method.setdefault((row["method"], row["kept"]), {})[row["layer"]] = row

    def cell(layer: int) -> Column:
        def show(row: Mapping[str, Any]) -> str:
            own = row["at"].get(layer)
            if own is None:
                return ""
            lost = "" if own["lost"] is None else f" ({100 * own['lost']:.0f})"
            return f"{percent(own['accuracy']['share'])}{lost}"

        return f"layer {layer}", show

    columns: list[Column] = [("method", lambda row: f"{row['method']}, {row['kept']} left"), *map(cell, places)]
    rows = [{"method": method, "kept": kept, "at": at} for (method, kept), at in by_method.items()]
    where = "no layer of these" if found["horizon"] is None else f"layer {found['horizon']}"
    text = (
        "Right answers by the layer of the decoder in which a method cuts; in brackets how many points of probability "
        f"vanilla's answer loses. The information horizon, behind which one token is as good as all, is {where} "
        "(arXiv 2512.07580)."
    )
    return Section("Where the cut is", text, columns, rows)


def _turns(found: Mapping[str, Any]) -> Section:
    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("asked second", lambda row: with_interval(row["second"])),
        ("asked alone", lambda row: with_interval(row["alone"])),
        ("difference", lambda row: _difference(row["behind_first"])),
    ]
    text = (
        "Right answers to a question of another kind about the same image, with "
        f"{found['smallest']} visual tokens: asked second, on the tokens that the first question left, and asked alone."
    )
    return Section("A second question", text, columns, _best_first(found["turns"], "second"))


def _positions(found: Mapping[str, Any]) -> Section:
    forms = list(dict.fromkeys(form for row in found["positions"] for form in row["forms"]))

    def cell(form: str) -> Column:
        return form, lambda row: with_interval(row["forms"][form]) if form in row["forms"] else ""

    columns: list[Column] = [
        ("method", lambda row: row["method"]),
        ("tokens left", lambda row: str(row["budget"])),
        *map(cell, forms),
        ("kept gains", lambda row: _difference(row["kept_gains"])),
    ]
    text = (
        "Right answers when survivors of a cut before the decoder are renumbered, stay at their positions, or are "
        "numbered around their median position (RESTORE's ablation)."
    )
    rows = sorted(found["positions"], key=lambda row: -row["budget"])
    return Section("Positions", text, columns, rows)
