"""`experiments.bench`: speed and memory against the machine and against transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core.results import format_bytes, format_seconds
from experiments.reports.html.charts import bars
from experiments.reports.html.page import Figure, Page, Table, facts
from experiments.reports.tables import Column, percent

Side = Mapping[str, Any]


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    del folder
    cells = [cell for cell in report["cells"] if "error" not in cell]
    failed = [f"Batch {cell['batch']}: {cell['error']}" for cell in report["cells"] if "error" in cell]
    return Page(
        title="Speed and memory",
        lead=_lead(cells[0]["carving"]) if cells else "",
        highlights=_highlights(cells[0]["carving"]) if cells else (),
        facts=facts(report),
        tables=list(map(_table, cells)),
        figures=_figures(cells) if cells else (),
        notes=[*failed, "Medians over rounds in which all sides take turns; random weights of real shapes."],
    )


def _sides(cell: Mapping[str, Any]) -> dict[str, Side]:
    return {name: cell[name] for name in ("uncompressed", "carved", "transformers") if cell.get(name)}


def _lead(carving: Side) -> str:
    return (
        f"Carving {carving['visual']} visual tokens to {carving['kept']} makes the prefill {carving['speed_up']:.2f} "
        f"times as fast (by floating-point operations alone it would be {carving['speed_up_limit']:.2f} times), and "
        f"leaves {percent(carving['cache_share'])} of the prompt's KV cache."
    )


def _highlights(carving: Side) -> list[tuple[str, str]]:
    return [
        (f"{carving['speed_up']:.2f} ×", "the speed of prefill"),
        (percent(carving["cache_share"]), "of the prompt's KV cache"),
        (format_seconds(carving["alone"]["median"]), "for the carving itself"),
    ]


def _table(cell: Mapping[str, Any]) -> Table:
    def median(what: str) -> Callable[[Side], str]:
        return lambda side: format_seconds(side[what]["median"])

    def quartiles(what: str) -> Callable[[Side], str]:
        return lambda side: " to ".join(map(format_seconds, side[what]["quartiles"]))

    lines: list[Column] = [
        ("prefill, median", median("prefill")),
        ("prefill, quartiles", quartiles("prefill")),
        ("share that is matrix products", lambda side: f"{100 * side['prefill_share']:.0f} %"),
        ("decoding, tokens a second", lambda side: f"{side['tokens_per_second']:.1f}"),
        ("one step, median", median("step")),
        ("one step, quartiles", quartiles("step")),
        ("share of the bandwidth", lambda side: f"{100 * side['decode_share']:.0f} %"),
        ("KV cache of the prompt", lambda side: format_bytes(side["cache"]["prompt"]) if side.get("cache") else "n/a"),
        ("peak memory", lambda side: "n/a" if side.get("peak") is None else format_bytes(side["peak"])),
        (
            "compile time, prefill",
            lambda side: format_seconds(side["compile"]["prefill"]) if side.get("compile") else "n/a",
        ),
    ]
    sides = _sides(cell)
    if "generate" in next(iter(sides.values())):
        lines.insert(0, ("generate, one token, median", median("generate")))
    rows = [[name, *map(show, sides.values())] for name, show in lines]
    return Table(f"Batch {cell['batch']}", ["", *sides], rows)


def _figures(cells: Sequence[Mapping[str, Any]]) -> list[Figure]:
    sides = dict.fromkeys(name for cell in cells for name in _sides(cell))

    def each(title: str, text: str, x: str, value: Callable[[Side], float | None]) -> Figure:
        series = {side: [value(cell[side]) if cell.get(side) else None for cell in cells] for side in sides}
        return bars(title, text, x=x, names=[f"batch {cell['batch']}" for cell in cells], series=series)

    def cache(side: Side) -> float | None:
        return side["cache"]["prompt"] / 2**20 if side.get("cache") else None

    return [
        each("Prefill time", "Median.", "ms", lambda side: 1e3 * side["prefill"]["median"]),
        each("Decoding", "All rows of the batch together.", "tokens a second", lambda side: side["tokens_per_second"]),
        each("KV cache", "Keys and values of the prompts.", "MiB", cache),
    ]
