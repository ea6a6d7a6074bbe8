"""What a run of the benchmark found, as a table for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.core.results import format_bytes, format_seconds, format_table

Show = Callable[[dict[str, Any]], str]  # one side's cell of a row


def _spread(times: dict[str, Any]) -> str:
    low, high = (format_seconds(value) for value in times["quartiles"])
    return f"{low} .. {high}"


def _times(ratio: dict[str, Any]) -> str:
    low, high = ratio["quartiles"]
    return f"{ratio['median']:.2f} x ({low:.2f} .. {high:.2f})"


def table(cell: dict[str, Any]) -> str:
    """One batch size: a column for each side that ran, a row for each quantity."""
    sides = {name: cell[name] for name in ("uncompressed", "carved", "transformers") if name in cell}
    torch = sides.get("transformers")
    called = "generate" in sides["uncompressed"]

    def compile_time(program: str) -> tuple[str, Show]:
        return f"compile time, {program}", lambda side: format_seconds(side["compile"][program])

    def faster(what: str) -> list[tuple[str, Show]]:
        return [] if torch is None else [("  faster than transformers", lambda side: _times(side["faster"][what]))]

    generate: list[tuple[str, Show]] = (
        [
            ("generate, one token, median", lambda side: format_seconds(side["generate"]["median"])),
            ("  quartiles", lambda side: _spread(side["generate"])),
            *faster("generate"),
            ("  fastest", lambda side: format_seconds(side["generate"]["fastest"])),
        ]
        if called
        else []
    )
    rows: list[tuple[str, Show]] = [
        *generate,
        ("prefill, median", lambda side: format_seconds(side["prefill"]["median"])),
        ("  quartiles", lambda side: _spread(side["prefill"])),
        *faster("prefill"),
        ("  share that is matrix products", lambda side: f"{side['prefill_share']:.0%}"),
        ("decode, tokens/s, all rows", lambda side: f"{side['tokens_per_second']:.1f}"),
        ("  one step, median", lambda side: format_seconds(side["step"]["median"])),
        ("  quartiles", lambda side: _spread(side["step"])),
        ("  share of the bandwidth bound", lambda side: f"{side['decode_share']:.0%}"),
        *faster("step"),
        ("  bytes per step, at least", lambda side: format_bytes(side["step_bytes"])),
        ("KV cache of the prompt", lambda side: format_bytes(side["cache"]["prompt"])),
        ("  with room for new tokens", lambda side: format_bytes(side["cache"]["allocated"])),
        ("peak memory", lambda side: format_bytes(side["peak"])),
        compile_time("prefill"),
        compile_time("decode"),
        *([compile_time("generate")] if called else []),
    ]

    def shown(show: Show, side: dict[str, Any]) -> str:
        try:
            return show(side)
        except KeyError:  # transformers compiles nothing, and its cache is not counted
            return "-"

    header = [f"batch {cell['batch']}", *sides]
    return format_table(header, [[name, *(shown(show, side) for side in sides.values())] for name, show in rows])


def carving(cell: dict[str, Any]) -> list[str]:
    """What carving changes, in words."""
    carving = cell["carving"]
    return [
        f"carving {carving['visual']} visual tokens to {carving['kept']}: prefill {carving['speed_up']:.2f} x faster "
        f"(limit by FLOPs {carving['speed_up_limit']:.2f} x: {carving['flops'][0]:.4g} -> {carving['flops'][1]:.4g})",
        f"carve alone {format_seconds(carving['alone']['median'])} ({_spread(carving['alone'])}), "
        f"{carving['share']:.1%} of the carved prefill",
        "products are counted at the speed of square ones in the same round; the rest of a prefill is what these take "
        "longer, softmax, norms, activations, rotary embedding and copies, and carving",
        f"KV cache of the prompt {carving['cache_share']:.1%} of the uncompressed "
        f"(slots {carving['slots'][0]} -> {carving['slots'][1]})",
    ]


def machine_speed(found: dict[str, Any]) -> str:
    """The machine's own speed, as measured between the rounds."""
    probes = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in found["bytes_per_second"].items())
    return (
        f"the machine's own speed, at best in this run: {probes} GB/s, {found['flops_per_second'] / 1e9:.0f} GFLOP/s "
        f"(shares above are of the best in the same round); calling a compiled program of this model takes "
        f"{format_seconds(found['dispatch_seconds'])}"
    )
