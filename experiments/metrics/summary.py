"""From answers to numbers: shares with their intervals, paired differences, and divergence of distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.core.methods import BASELINE as BASELINE

_Z = 1.959964  # of a 95 % interval


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927).

    >>> low, high = wilson(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.596, 0.982)
    """
    from scipy.stats import binomtest  # imported here: it takes a second that `--help` should not wait for

    interval = binomtest(right, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def share(right: Sequence[bool]) -> dict[str, Any]:
    """A share with its 95 % interval."""
    low, high = wilson(sum(right), len(right))
    return {"right": sum(right), "of": len(right), "share": sum(right) / len(right), "low": low, "high": high}


def accuracy(right: Sequence[bool], families: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Shares by family of questions, in the order in which families appear, and `overall`.

    Args:
      right: whether each question was answered rightly; at least one.
      families: that each is of; "" for none.
    """
    parts = {name: [ok for ok, own in zip(right, families, strict=True) if own == name] for name in families if name}
    return {name: share(own) for name, own in (parts | {"overall": list(right)}).items()}


def paired_difference(first: Sequence[bool], second: Sequence[bool], groups: Sequence[int]) -> list[float | None]:
    """Difference of two shares over the same questions, and half the width of its 95 % interval.

    Questions about one scene are not independent. Their residuals are summed before they are squared (a cluster-robust
    variance), which `scipy.stats` does not have.

    Args:
      first: right or wrong, per question.
      second: the same questions.
      groups: per question the scene that it is about.

    Returns:
      share of second - share of first, and the half width; None for a single group.
    """
    delta = np.asarray(second, float) - np.asarray(first, float)
    mean = delta.mean()
    _, index = np.unique(groups, return_inverse=True)
    residuals = np.bincount(index, weights=delta - mean)
    count = len(residuals)
    if count < 2:
        return [float(mean), None]
    variance = count / (count - 1) * np.square(residuals).sum() / len(delta) ** 2
    return [float(mean), float(_Z * math.sqrt(variance))]


def divergence(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of softmax(logits) from softmax(reference), [B, V] each: [B] nats, in float64."""
    first, second = (_log_softmax(np.asarray(array, np.float64)) for array in (reference, logits))
    return np.maximum((np.exp(first) * (first - second)).sum(-1), 0)


def probability_lost(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """How much less likely the likeliest token of softmax(reference) is in softmax(logits): [B], in float64.

    As arXiv 2512.07580 measures what visual tokens tell: by the change in the answer's probability when they go.
    """
    first, second = (np.exp(_log_softmax(np.asarray(array, np.float64))) for array in (reference, logits))
    best = first.argmax(-1)[:, None]
    return (np.take_along_axis(first, best, -1) - np.take_along_axis(second, best, -1))[:, 0]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
