"""Times with their spread, and how fast this machine is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


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


def ratios(reference: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """How many times faster, round by round: what both take in one round is of one state of the machine.

    >>> ratios([4.0, 9.0, 2.0], [2.0, 3.0, 2.0])
    {'median': 2.0, 'quartiles': [1.5, 2.5]}
    """
    found = summary([other / own for other, own in zip(reference, seconds, strict=True)])
    return {"median": found["median"], "quartiles": found["quartiles"]}


class Probes:
    """How fast this machine moves bytes and multiplies, tried once in every round of the benchmark.

    Machines that are shared or hot change their speed from one minute to the next, so what a round takes is compared
    with what the same round found.

    Args:
      dtype: of the weights.
      size: numbers in the large array, more than any cache holds.
      side: of the square matrices.

    Attributes:
      bytes_per_second: by probe, the best so far.
      flops_per_second: the best so far.
    """

    def __init__(self, dtype: Any, *, size: int, side: int):
        width = 4096 if size % 4096 == 0 else 1
        ones = jax.jit(lambda: jnp.ones((width, size // width), dtype))()
        square, vector = jnp.ones((side, side), dtype), jnp.ones((1, width), dtype)
        total = jax.jit(lambda x: x.sum(dtype=jnp.float32))
        copy = jax.jit(lambda x: x + 1)
        product = jax.jit(lambda v, m: jnp.matmul(v, m, preferred_element_type=jnp.float32))
        multiply = jax.jit(jnp.matmul)
        self._moves: dict[str, tuple[Callable[[], jax.Array], int]] = {
            "sum": (lambda: total(ones), ones.nbytes),
            "copy": (lambda: copy(ones), 2 * ones.nbytes),
            "matrix-vector product": (lambda: product(vector, ones), ones.nbytes),
        }
        self._multiply, self._flops = lambda: multiply(square, square), 2.0 * side**3
        self.bytes_per_second = dict.fromkeys(self._moves, 0.0)
        self.flops_per_second = 0.0

    def measure(self, repeats: int = 3) -> tuple[float, float]:
        """Try each once more.

        Returns:
          Bytes per second, the best of the probes, and floating-point operations per second; of now. The attributes
          keep the best ever seen.
        """
        now = {name: moved / _fastest(probe, repeats) for name, (probe, moved) in self._moves.items()}
        self.bytes_per_second = {name: max(rate, now[name]) for name, rate in self.bytes_per_second.items()}
        flops = self._flops / _fastest(self._multiply, repeats)
        self.flops_per_second = max(self.flops_per_second, flops)
        return max(now.values()), flops


def _fastest(work: Callable[[], Any], repeats: int) -> float:
    """Seconds, after one call to warm up."""
    timed(work)
    return min(timed(work)[1] for _ in range(repeats))
