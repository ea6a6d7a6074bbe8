"""A file of JSON lines that survives interruption: what a run did so far."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.errors import CommandError
from models.io.untrusted import read_bytes
from models.io.writing import naming

_MOST_BYTES = 2**31  # a comparison of all methods on a benchmark of 10,000 questions writes a hundredth
Shape = Any
"""What an entry looks like: a type, `[shape]`, `{str: shape}`, `{int: shape}` where the keys are numbers, a record
`{"key": shape, "optional?": shape}`, or a tuple of records, told apart by the first key of each. `int` counts: it is
never negative."""


class OtherRunError(CommandError):
    """A folder holds a run that this one cannot go on with."""


@contextlib.contextmanager
def resuming() -> Iterator[None]:
    """A command with `--out` and `--restart` says what to do about an `OtherRunError`."""
    try:
        yield
    except OtherRunError as error:
        raise CommandError(f"{error}; pass another --out, or --restart to replace it") from error


def differing(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which two runs differ, in order.

    >>> differing({"keep": 128, "seed": 0}, {"keep": 64, "seed": 0, "limit": 9})
    ['keep', 'limit']
    """
    return sorted(key for key in {*settings, *others} if settings.get(key) != others.get(key))


def mismatch(value: Any, shape: Any, name: str = "it") -> str:
    """How a JSON value differs from a `Shape`; "" where it does not.

    >>> mismatch({"indices": [1, "2"]}, {"indices": [int], "errors?": {str: str}})
    'indices[1] is not int'
    >>> mismatch({"errors": {"-1": "no image"}}, {"errors": {int: str}})
    "errors: '-1' is not a number"
    """
    if isinstance(shape, tuple):
        first = {next(iter(record)): record for record in shape}
        if not isinstance(value, dict):
            return f"{name} is not an object"
        if not (known := [key for key in first if key in value]):
            return f"{name} has none of {', '.join(first)}"
        return mismatch(value, first[known[0]], name)
    kind = shape if isinstance(shape, type) else type(shape)
    allowed: Any = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind in (int, float)):
        return f"{name} is not {'a list' if kind is list else 'an object' if kind is dict else kind.__name__}"
    if kind is float and not math.isfinite(value):
        return f"{name} is not finite"
    if kind is int and value < 0:
        return f"{name} is negative"
    parts: list[tuple[Any, Shape, str]] = []
    if isinstance(shape, list):
        parts = [(part, shape[0], f"{name}[{number}]") for number, part in enumerate(value)]
    elif isinstance(shape, dict) and (str in shape or int in shape):
        parts = [(part, shape.get(str, shape.get(int)), key) for key, part in value.items()]
        if int in shape and (odd := [key for key in value if not (key.isascii() and key.isdecimal())]):
            return f"{name}: {odd[0]!r} is not a number"
    elif isinstance(shape, dict):
        if missing := [key for key in shape if not key.endswith("?") and key not in value]:
            return f"{name} has no {missing[0]}"
        own = {key.removesuffix("?"): part for key, part in shape.items()}
        parts = [(value[key], part, key) for key, part in own.items() if key in value]
    return next(filter(None, (mismatch(*part) for part in parts)), "")


class Journal:
    """A file of JSON lines, the first of which tells the settings.

    A line is on the disk before `add` returns. A last line that was torn by an interruption is dropped.

    Args:
      path: the file; neither it nor its folder need exist, and neither is made before the first `add`.
      settings: what must agree for entries to belong together; JSON types.
      restart: forget what the file holds.
      shape: of all entries.

    Attributes:
      entries: all of them, those of earlier runs too.

    Raises:
      OtherRunError: the file belongs to other settings, or is damaged; names the line.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, restart: bool = False, shape: Shape = dict):
        self.path, self.settings = path, settings
        self.entries: list[dict[str, Any]] = []
        self._size = 0  # bytes of whole lines
        if os.path.lexists(path) and not restart:
            self._read(shape)

    def _read(self, shape: Shape) -> None:
        lines = read_bytes(self.path, OtherRunError, most=_MOST_BYTES).split(b"\n")
        lines.pop()  # what stands after the last line break: nothing, or a torn line
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                problem = "it is not JSON"
            else:
                problem = mismatch(entry, {"settings": dict} if number == 1 else shape)
            if problem:
                raise OtherRunError(f"{self.path} is damaged in line {number}: {problem}")
            self.entries.append(entry)
        self._size = sum(len(line) + 1 for line in lines)
        if lines and (changed := differing(self.entries.pop(0)["settings"], self.settings)):
            raise OtherRunError(f"{self.path.parent} holds a run with other settings ({', '.join(changed)})")

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
