"""What lmms-eval's adapter is told, until it says so with `experiments.core.config`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.core.config import PromptConfig

Asking = PromptConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """See `ModelConfig`, `WorkerConfig` and `RunConfig`."""

    model: str
    methods: tuple[str, ...]
    out: Path
    keep: float | int
    scenes: int
    batch_size: int
    seed: int = 0
    dtype: str = "float32"
    revision: str | None = None
    schedules: tuple[tuple[str, ...], ...] = ()
    restart: bool = False
    workers: int = 1
    ray_address: str | None = None
