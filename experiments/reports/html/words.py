"""Shares, differences and facts of a run as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def percent(share: float | None) -> str:
    """0.912 -> "91.2 %"."""
    return "n/a" if share is None else f"{100 * share:.1f} %"


def with_interval(share: Mapping[str, Any] | None) -> str:
    """A share with half of its 95 % interval: "91.2 % ± 1.9"."""
    return "n/a" if share is None else f"{percent(share['share'])} ± {50 * (share['high'] - share['low']):.1f}"


def points(value: float | None, half_width: float | None) -> str:
    """A difference of shares in points: "-5.8 ± 1.5"."""
    if value is None:
        return "n/a"
    return f"{100 * value:+.1f}" + ("" if half_width is None else f" ± {100 * half_width:.1f}")


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, and on what, as far as results.json says."""
    settings = report.get("settings", {})
    machine = report.get("machine", settings.get("machine", {}))
    versions = report.get("versions", settings.get("versions", {}))
    command = report.get("command")
    found = {
        "command": command if isinstance(command, str) else _shell(command or ()),
        "model": report.get("model") or settings.get("preset"),
        "date": str(report.get("date") or "")[:10],
        "numbers": settings.get("dtype"),
        "seed": settings.get("seed"),
        "machine": " ".join(
            str(part)
            for part in (machine.get("processor"), f"({machine['cores']} cores)" if "cores" in machine else None)
            if part
        ),
        "device": machine.get("device") if machine.get("backend") not in (None, "cpu") else None,
        "versions": ", ".join(
            f"{name} {versions[name]}" for name in ("python", "jax", "flax", "transformers") if name in versions
        ),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]


def _shell(words: Sequence[str]) -> str:
    return " ".join(map(str, words))
