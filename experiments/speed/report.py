"""What a run of the benchmark found, as a table for people."""

from __future__ import annotations

from typing import Any

from experiments.core.results import format_bytes, format_seconds, format_table


def _spread(times: dict[str, Any]) -> str:
    low, high = (format_seconds(value) for value in times["quartiles"])
    return f"{low} .. {high}"


def _columns(cell: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: cell[name] for name in ("uncompressed", "carved", "transformers") if cell.get(name)}


def table(cell: dict[str, Any]) -> str:
    """One batch size: a column for each side that ran, a line for each quantity."""
    columns = _columns(cell)
    peer = columns.get("transformers")

    def row(name: str, show: Any) -> list[str]:
        return [name, *(show(side) for side in columns.values())]

    def versus(what: str, of: str = "median") -> list[list[str]]:
        if peer is None:
            return []

        def faster(side: dict[str, Any]) -> str:
            return "-" if side is peer else f"{peer[what][of] / side[what][of]:.2f} x"

        return [row("  faster than transformers", faster)]

    def get(side: dict[str, Any], key: str, show: Any) -> str:
        return show(side[key]) if side.get(key) is not None else "-"

    def compiling(name: str) -> list[str]:
        return row(f"compile time, {name}", lambda side: get(side, "compile", lambda v: format_seconds(v[name])))

    called = "generate" in columns["uncompressed"]
    rows = [
        row("prefill, median", lambda side: format_seconds(side["prefill"]["median"])),
        row("  quartiles", lambda side: _spread(side["prefill"])),
        *versus("prefill"),
        row("  share of the measured FLOP/s", lambda side: get(side, "prefill_share", lambda v: f"{v:.0%}")),
        row("decode, tokens/s, all rows", lambda side: f"{side['tokens_per_second']:.1f}"),
        row("  one step, median", lambda side: format_seconds(side["step"]["median"])),
        row("  quartiles", lambda side: _spread(side["step"])),
        row("  share of the bandwidth bound", lambda side: get(side, "decode_share", lambda v: f"{v:.0%}")),
        *versus("step"),
        row("  bytes per step, at least", lambda side: get(side, "step_bytes", format_bytes)),
        row("KV cache of the prompt", lambda side: get(side, "cache", lambda v: format_bytes(v["prompt"]))),
        row("  with room for new tokens", lambda side: get(side, "cache", lambda v: format_bytes(v["allocated"]))),
        row("peak memory", lambda side: format_bytes(side["peak"])),
        *map(compiling, ["prefill", "decode", *(["generate"] if called else [])]),
    ]
    if called:
        rows[:0] = [
            row("generate, one token, median", lambda side: format_seconds(side["generate"]["median"])),
            row("  quartiles", lambda side: _spread(side["generate"])),
            *versus("generate"),
            row("  fastest", lambda side: format_seconds(side["generate"]["fastest"])),
            *versus("generate", "fastest"),
        ]
    if "largest_batch" in columns["uncompressed"]:
        rows.append(
            row("largest batch that fits", lambda side: get(side, "largest_batch", lambda v: str(v["verified"])))
        )
    return format_table([f"batch {cell['batch']}", *columns], rows)


def lines(cell: dict[str, Any]) -> list[str]:
    """What carving changes, in words."""
    carving = cell["carving"]
    return [
        f"carving {carving['visual']} visual tokens to {carving['kept']}: prefill {carving['speed_up']:.2f} x faster "
        f"(limit by FLOPs {carving['speed_up_limit']:.2f} x: {carving['flops'][0]:.4g} -> {carving['flops'][1]:.4g})",
        f"carve alone {format_seconds(carving['alone']['median'])} ({_spread(carving['alone'])}), "
        f"{carving['share']:.1%} of the carved prefill",
        f"KV cache of the prompt {carving['cache_share']:.1%} of the uncompressed "
        f"(slots {carving['slots'][0]} -> {carving['slots'][1]})",
    ]


def floors(found: dict[str, Any]) -> str:
    """The machine's own speed, as measured between the rounds."""
    probes = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in found["bytes_per_second"].items())
    return (
        f"the machine's own speed, at best in this run: {probes} GB/s, {found['flops_per_second'] / 1e9:.0f} GFLOP/s "
        f"(shares above are of the best in the same round); calling a compiled program of this model takes "
        f"{format_seconds(found['dispatch_seconds'])}"
    )
