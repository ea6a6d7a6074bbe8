"""What a worker finds out about a batch, and the entry of a journal that it becomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Found:
    """What one cell gave for a batch: columns of JSON values, a value for each question."""

    columns: dict[str, list[Any]]
    seconds: float
    prefill_s: float = 0.0
    cache_bytes: float = 0.0


def new_entry(cells: Sequence[str], errors: Mapping[int, str], *, waited: float) -> dict[str, Any]:
    """An entry without answers; `waited` are the seconds until its questions were read."""
    return {
        "indices": [],
        "errors": {str(index): error for index, error in errors.items()},  # JSON's keys are texts
        "found": {name: {"prediction": []} for name in cells},
        "seconds": {"waiting for input": waited, "compiling": 0.0, "device": 0.0},
    }
