"""Correlation across a handful of methods, with an interval and the chance of as much by luck.

Axis letters: M methods, K budgets, ... resamples.
"""

from __future__ import annotations

import numpy as np

KINDS = ("Spearman", "Pearson")
RESAMPLES = 2000
FEWEST = 4  # methods below which a correlation says nothing


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's coefficient within budgets: of each value less its budget's mean.

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


def correlate(x: np.ndarray, y: np.ndarray, kind: str, *, seed: int = 0) -> dict[str, float | None]:
    """Correlate two figures of methods, within budgets.

    A method is drawn and permuted with all of its budgets, as they are not independent.

    Args:
      x: [M, K] float64, a figure for each method and budget.
      y: [M, K] float64, another.
      kind: "Spearman", "Pearson", or "Kendall" (tau-b).
      seed: of the resampling.

    Returns:
      `value`, the coefficient; `low` and `high` of its 95 % percentile bootstrap interval over methods; `p`, two-sided,
      of a permutation test, exact where there are no more than `RESAMPLES` permutations. All are None where there are
      fewer than `FEWEST` methods, or one of the figures is the same for all.
    """
    from scipy.stats import permutation_test, rankdata  # imported here: a second that `--help` should not wait for

    def prepared(values: np.ndarray) -> np.ndarray:
        """What Pearson's coefficient is taken of: for Kendall's, the signs of all differences, whose means are zero."""
        if kind == "Kendall":
            signs = np.sign(values[..., :, None, :] - values[..., None, :, :])
            return signs.reshape(*values.shape[:-2], -1, values.shape[-1])
        return rankdata(values, axis=-2) if kind == "Spearman" else values

    count, fixed = len(x), prepared(x)
    value = float(pearson(fixed, prepared(y))) if count >= FEWEST else np.nan
    if np.isnan(value):
        return dict.fromkeys(("value", "low", "high", "p"))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, count, (RESAMPLES, count))
    low, high = np.nanpercentile(
        pearson(prepared(x[drawn]), prepared(y[drawn])), [2.5, 97.5]
    )  # NaN where one is constant

    def size(order: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(pearson(fixed, prepared(y[order])))

    test = permutation_test(
        (np.arange(count),), size, permutation_type="pairings", alternative="greater", n_resamples=RESAMPLES, rng=rng
    )
    return {"value": value, "low": float(low), "high": float(high), "p": float(test.pvalue)}


def least_telling(count: int) -> float:
    """The size from which on a coefficient of so many independent points differs from 0 at the 5 % level.

    >>> round(least_telling(16), 3)
    0.497
    """
    from scipy.stats import t

    quantile = t.ppf(0.975, count - 2)
    return float(quantile / np.sqrt(count - 2 + quantile**2))
