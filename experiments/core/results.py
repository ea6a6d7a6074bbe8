"""What a run that measures leaves behind: a journal that survives interruption, results.json, a table."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from models.errors import CommandError
from models.io.writing import naming, replacing

_PACKAGES = ("tokencarve_jax", "jax", "jaxlib", "flax", "transformers", "numpy", "pillow")
_CODE = (
    "tokencarve_jax",
    "models",
    "experiments/data/scenes",
    "experiments/data/image_files.py",
    "experiments/core/loading.py",
    "experiments/data/preprocessing.py",
    "experiments/evaluation",
    "experiments/core/methods.py",
    "experiments/core/schedules.py",
)
_ENVIRONMENT = ("XLA_FLAGS", "PJRT_NPROC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")  # change times
_ROOT = Path(__file__).parents[2]
_Z = 1.959964  # of a 95 % interval


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


def plain(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass as JSON types, but for where results go ("out")."""
    fields = dataclasses.asdict(settings)
    return {key: str(value) if isinstance(value, Path) else value for key, value in fields.items() if key != "out"}


def differing(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which two runs differ, in order.

    >>> differing({"keep": 128, "seed": 0}, {"keep": 64, "seed": 0, "limit": 9})
    ['keep', 'limit']
    """
    return sorted(key for key in {*settings, *others} if settings.get(key) != others.get(key))


class OtherRunError(CommandError):
    """A folder holds a run that this one cannot go on with."""


@contextlib.contextmanager
def resuming() -> Iterator[None]:
    """A command with `--out` and `--restart` says what to do about an `OtherRunError`."""
    try:
        yield
    except OtherRunError as error:
        raise CommandError(f"{error}; pass another --out, or --restart to replace it") from error


class Journal:
    """A file of JSON lines, the first of which tells the settings: what a run did so far.

    A line is on the disk before `add` returns. A last line that was torn by an interruption is dropped.

    Args:
      path: the file; neither it nor its folder need exist, and neither is made before the first `add`.
      settings: what must agree for entries to belong together; JSON types.
      restart: forget what the file holds.

    Attributes:
      entries: all of them, those of earlier runs too.

    Raises:
      OtherRunError: the file belongs to other settings, or is no journal.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, restart: bool = False):
        self.path, self.settings = path, settings
        self.entries: list[dict[str, Any]] = []
        self._size = 0  # bytes of whole lines
        if path.exists() and not restart:
            self._read()

    def _read(self) -> None:
        lines = self.path.read_bytes().split(b"\n")
        lines.pop()  # what stands after the last line break: nothing, or a torn line
        try:
            rows = [json.loads(line) for line in lines]
            found = rows[0]["settings"] if rows else self.settings
        except (ValueError, KeyError, TypeError) as error:
            raise OtherRunError(f"{self.path} is damaged") from error
        if changed := differing(found, self.settings):
            raise OtherRunError(f"{self.path.parent} holds a run with other settings ({', '.join(changed)})")
        self.entries, self._size = rows[1:], sum(len(line) + 1 for line in lines)

    def add(self, entry: dict[str, Any]) -> None:
        """Append one entry."""
        text = b""
        if not self._size:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"settings": self.settings}).encode() + b"\n"
        text += json.dumps(entry).encode() + b"\n"
        with naming(self.path), self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(text)
        self.entries.append(entry)


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927).

    >>> low, high = wilson(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.596, 0.982)
    """
    from scipy.stats import binomtest  # imported here: it takes a second that `--help` should not wait for

    interval = binomtest(right, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(first: Sequence[bool], second: Sequence[bool], groups: Sequence[int]) -> tuple[float, float]:
    """Difference of two shares over the same questions, and half the width of its 95 % interval.

    Args:
      first: right or wrong, per question.
      second: the same questions.
      groups: per question the scene that it is about: questions about one scene are not independent.

    Returns:
      share of second - share of first, and the half width; NaN for a single group.
    """
    delta = np.asarray(second, float) - np.asarray(first, float)
    mean = delta.mean()
    _, index = np.unique(groups, return_inverse=True)
    residuals = np.bincount(index, weights=delta - mean)
    count = len(residuals)
    if count < 2:
        return float(mean), math.nan
    variance = count / (count - 1) * np.square(residuals).sum() / len(delta) ** 2
    return float(mean), float(_Z * math.sqrt(variance))


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
