"""What a run that measures leaves behind: where it ran, results.json, and numbers as text."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from models.errors import CommandError
from models.io.untrusted import check_file
from models.io.writing import replacing

_PACKAGES = ("tokencarve_jax", "jax", "jaxlib", "flax", "transformers", "numpy", "pillow")
_CODE = (  # what decides what a run measures; tables and figures can change
    "tokencarve_jax",
    "models",
    "experiments/core",
    "experiments/data",
    "experiments/evaluation",
    "experiments/comparison/cells.py",
    "experiments/comparison/calls.py",
    "experiments/metrics/costs.py",
    "experiments/reports/patch_maps",
)
_ENVIRONMENT = ("XLA_FLAGS", "PJRT_NPROC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")  # change times
_ROOT = Path(__file__).parents[2]


def versions(*more: str) -> dict[str, str]:
    """Of Python and of the packages that a result depends on, and of `more` packages."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """What this process runs on."""
    device = jax.local_devices()[0]
    return host() | {
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.local_device_count(),
    }


def host() -> dict[str, Any]:
    """What this process runs on, without a look at JAX's devices."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def code_checksum(*more: str) -> str:
    """SHA-256 over the source that decides what a run measures, and over `more` folders or files of it."""
    total = hashlib.sha256()
    for part in (*_CODE, *more):
        path = _ROOT / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            total.update(file.relative_to(_ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all."""
    with replacing(path) as part:
        # A byte of a path or flag that is not UTF-8 becomes JSON's own escape.
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON for people to read: a list of records takes one line for each."""
    parts = []
    for key, part in value.items():
        if isinstance(part, list) and part and isinstance(part[0], dict):
            text = "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in part) + "\n ]"
        else:
            text = json.dumps(part, indent=1, ensure_ascii=False).replace("\n", "\n ")
        parts.append(f" {json.dumps(key)}: {text}")
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


def head(kind: str, command: Sequence[str]) -> dict[str, Any]:
    """What every results.json begins with: the kind of run, the command, and the date."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"kind": kind, "command": list(command), "date": date}


def write_study(path: Path, kind: str, command: Sequence[str], settings: Mapping[str, Any], **found: Any) -> None:
    """Write the results.json of a study: its `head`, settings but for where it goes, machine, versions, and `found`."""
    given = {name: value for name, value in settings.items() if name != "out"}
    about = {"settings": given, "machine": machine(), "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, head(kind, command) | about | found)


def plain(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass as JSON types, but for where results go ("out")."""
    fields = dataclasses.asdict(settings)
    return {key: str(value) if isinstance(value, Path) else value for key, value in fields.items() if key != "out"}


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths)))  # noqa: B905
        return "  ".join([first, *rest]).rstrip()

    return "\n".join(map(line, lines))


def format_bytes(count: float) -> str:
    """2064384 -> "1.97 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def format_seconds(seconds: float) -> str:
    """0.0412 -> "41.2 ms"."""
    return (
        f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
    )


def check_folder(out: Path) -> Path:
    """What `--out` names; CommandError where that is a file."""
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out {out}: there is a file of that name")
    return out


_KEPT = ("results.json", "answers.jsonl", "measured.jsonl")  # what says which kind of run a folder holds


def check_kind(out: Path, *kinds: str) -> None:
    """Refuse a folder of other results.

    Raises:
      CommandError: what is there is of none of the `kinds`.
    """
    for path in (out / name for name in _KEPT):
        if os.path.lexists(path) and (found := _kind(path)) not in ("", *kinds):
            raise CommandError(f"{out} holds results of the kind {found!r}, not {kinds[0]!r}; pass another --out")


def _kind(path: Path) -> str:
    """What a file says; "" where it says nothing that can be read. CommandError as `check_file`."""
    check_file(path, CommandError, most=2**31)
    try:
        with path.open(encoding="utf-8") as file:
            value = json.load(file) if path.suffix == ".json" else json.loads(file.readline())["settings"]
        return str(value.get("kind", ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""


def claim(out: Path, *kinds: str) -> Path:
    """The path of results.json in the folder of a run that measures; nothing is made yet.

    Raises:
      CommandError: there is a file of that name, or the folder holds results of none of the `kinds`.
    """
    check_kind(check_folder(out), *kinds)
    return out / "results.json"
