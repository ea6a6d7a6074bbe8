"""Correlation across a handful of methods, with an interval and the chance of as much by luck.

Axis letters: M methods, K budgets, ... resamples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

KINDS = ("Spearman", "Pearson")
RESAMPLES = PERMUTATIONS = 2000
FEWEST = 4  # methods below which a correlation says nothing


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A correlation coefficient over methods.

    Attributes:
      value: from -1 to 1.
      low: of the 95 % percentile bootstrap interval; methods are what is drawn.
      high: see `low`.
      p: two-sided, of a Monte Carlo permutation test: how often methods dealt out at random do at least as well.
    """

    value: float
    low: float
    high: float
    p: float


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's coefficient within budgets: of what is left of each value without its budget's mean.

    Args:
      x: [..., M, K].
      y: [..., M, K].

    Returns:
      [...]; NaN where x or y is constant in every budget. With K = 1 it is the usual coefficient.
    """
    x, y = _centred(x), _centred(y)
    above = (x * y).sum((-2, -1))
    below = np.sqrt((x * x).sum((-2, -1)) * (y * y).sum((-2, -1)))
    return np.clip(np.divide(above, below, where=below > 0, out=np.full(below.shape, np.nan)), -1, 1)


def _centred(values: np.ndarray) -> np.ndarray:
    """[..., M, K] without its mean along M; exactly zero where it is constant but for rounding."""
    rest = values - values.mean(-2, keepdims=True)
    return np.where(np.abs(rest) > 1e-12 * np.abs(values).max((-2, -1), keepdims=True), rest, 0)


def midranks(values: np.ndarray) -> np.ndarray:
    """[..., M, K] -> ranks along M from 1 on, ties sharing their mean."""
    from scipy.stats import rankdata  # imported here: it takes a second that `--help` should not wait for

    return rankdata(values, axis=-2)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return pearson(midranks(x), midranks(y))


def correlate(x: np.ndarray, y: np.ndarray, kind: str, *, seed: int = 0) -> Correlation | None:
    """Correlate two figures of methods, within budgets.

    A method is drawn and dealt out with all of its budgets, as they are not independent.

    Args:
      x: [M, K] float64, a figure for each method and budget.
      y: [M, K] float64, another.
      kind: of `KINDS`.
      seed: of the resampling.

    Returns:
      None where there are fewer than `FEWEST` methods, or one of the figures is the same for all.
    """
    count = len(x)
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray] = {"Pearson": pearson, "Spearman": _spearman}[kind]
    value = float(statistic(x, y)) if count >= FEWEST else np.nan
    if np.isnan(value):
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, count, (RESAMPLES, count))
    low, high = np.nanpercentile(statistic(x[drawn], y[drawn]), [2.5, 97.5])
    if kind == "Spearman":
        x, y = midranks(x), midranks(y)
    dealt = rng.permuted(np.tile(np.arange(count), (PERMUTATIONS, 1)), axis=1)
    as_much = np.abs(pearson(x[None], y[dealt])) >= abs(value) - 1e-12
    return Correlation(value, float(low), float(high), float((1 + as_much.sum()) / (1 + PERMUTATIONS)))


def least_telling(count: int) -> float:
    """The size from which on a coefficient of so many independent points differs from 0 at the 5 % level.

    >>> round(least_telling(16), 3)
    0.497
    """
    from scipy.stats import t

    quantile = t.ppf(0.975, count - 2)
    return float(quantile / np.sqrt(count - 2 + quantile**2))
