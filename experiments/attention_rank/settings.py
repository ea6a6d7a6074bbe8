"""What a run is told to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

DEFAULT_METHODS = (
    "tokencarve",
    "tokencarve-no-merge",
    "tokencarve-attention-only",
    "tokencarve-information-only",
    "fastv",
    "dart",
    "sparsevlm",
    "norm",
    "random",
    "uniform",
    "pooling",
    "divprune",
    "visionzip",
    "vispruner",
    "holov",
    "scope",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run; the fields are the command's flags, and its `--help` explains them."""

    model: str
    revision: str | None
    dtype: str
    keep: tuple[float | int, ...]
    methods: tuple[str, ...]
    limit: int
    seed: int
    out: Path
    restart: bool
