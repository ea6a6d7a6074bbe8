"""`experiments.bench`: speed and memory against the machine and against transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core.results import format_bytes, format_seconds
from experiments.reports.html.charts import bars
from experiments.reports.html.page import Figure, Page, Table
from experiments.reports.html.words import facts

_SIDES = ("uncompressed", "carved", "transformers")


def is_it(report: Mapping[str, Any]) -> bool:
    """Whether it is such a run's."""
    return isinstance(report.get("cells"), list) and "floors" in report


def page(report: Mapping[str, Any], folder: Path) -> Page:
    """The page."""
    del folder
    cells = [cell for cell in report["cells"] if "error" not in cell]
    failed = [f"Batch {cell['batch']}: {cell['error']}" for cell in report["cells"] if "error" in cell]
    return Page(
        title="Speed and memory",
        lead=" ".join(map(_lead, cells[:1])),
        highlights=_highlights(cells[0]) if cells else (),
        facts=facts(report),
        tables=[_table(cell) for cell in cells],
        figures=_figures(cells) if cells else (),
        notes=[*failed, "Medians over rounds in which all sides take turns; random weights of real shapes."],
    )


def _sides(cell: Mapping[str, Any]) -> list[str]:
    return [name for name in _SIDES if cell.get(name)]


def _lead(cell: Mapping[str, Any]) -> str:
    carving = cell["carving"]
    return (
        f"Carving {carving['visual']} visual tokens to {carving['kept']} makes the prefill {carving['speed_up']:.2f} "
        f"times as fast (by floating-point operations alone it would be {carving['speed_up_limit']:.2f} times), and "
        f"leaves {100 * carving['cache_share']:.1f} % of the prompt's KV cache."
    )


def _highlights(cell: Mapping[str, Any]) -> list[tuple[str, str]]:
    carving = cell["carving"]
    return [
        (f"{carving['speed_up']:.2f} ×", "the speed of prefill"),
        (f"{100 * carving['cache_share']:.1f} %", "of the prompt's KV cache"),
        (format_seconds(carving["alone"]["median"]), "for the carving itself"),
    ]


def _table(cell: Mapping[str, Any]) -> Table:
    sides = [cell[name] for name in _sides(cell)]

    def spread(times: Mapping[str, Any]) -> str:
        return " to ".join(map(format_seconds, times["quartiles"]))

    def inner(side: Mapping[str, Any], key: str, name: str, show: Any) -> str:
        return show(side[key][name]) if side.get(key) else "n/a"

    rows = {
        "prefill, median": [format_seconds(side["prefill"]["median"]) for side in sides],
        "prefill, quartiles": [spread(side["prefill"]) for side in sides],
        "share of the measured FLOP/s": [f"{100 * side['prefill_share']:.0f} %" for side in sides],
        "decoding, tokens a second": [f"{side['tokens_per_second']:.1f}" for side in sides],
        "one step, median": [format_seconds(side["step"]["median"]) for side in sides],
        "one step, quartiles": [spread(side["step"]) for side in sides],
        "share of the bandwidth": [f"{100 * side['decode_share']:.0f} %" for side in sides],
        "KV cache of the prompt": [inner(side, "cache", "prompt", format_bytes) for side in sides],
        "peak memory": ["n/a" if side.get("peak") is None else format_bytes(side["peak"]) for side in sides],
        "compile time, prefill": [inner(side, "compile", "prefill", format_seconds) for side in sides],
    }
    if "generate" in sides[0]:
        rows = {"generate, one token, median": [format_seconds(side["generate"]["median"]) for side in sides]} | rows
    out = [[name, *values] for name, values in rows.items()]
    return Table(f"Batch {cell['batch']}", ["", *_sides(cell)], out)


def _figures(cells: Sequence[Mapping[str, Any]]) -> list[Figure]:
    names = [f"batch {cell['batch']}" for cell in cells]
    sides = list(dict.fromkeys(name for cell in cells for name in _sides(cell)))

    def series(value: Any) -> dict[str, list[float | None]]:
        return {side: [value(cell[side]) if cell.get(side) else None for cell in cells] for side in sides}

    def cache(side: Mapping[str, Any]) -> float | None:
        return side["cache"]["prompt"] / 2**20 if side.get("cache") else None

    return [
        bars(
            "Prefill time", "Median.", x="ms", names=names, series=series(lambda side: 1e3 * side["prefill"]["median"])
        ),
        bars(
            "Decoding",
            "All rows of the batch together.",
            x="tokens a second",
            names=names,
            series=series(lambda side: side["tokens_per_second"]),
        ),
        bars("KV cache", "Keys and values of the prompts.", x="MiB", names=names, series=series(cache)),
    ]
