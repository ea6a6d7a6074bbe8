"""Times with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Result, on the device and complete, and seconds until it was."""
    start = time.perf_counter()
    result = jax.block_until_ready(work())
    return result, time.perf_counter() - start


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles, the fastest and all of some times.

    >>> summary([4.0, 1.0, 2.0, 3.0])["median"], summary([4.0, 1.0, 2.0, 3.0])["quartiles"]
    (2.5, [1.75, 3.25])
    """
    times = [round(value, 7) for value in seconds]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"median": statistics.median(times), "quartiles": [low, high], "fastest": min(times), "seconds": times}
