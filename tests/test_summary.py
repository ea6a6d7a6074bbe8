"""Figures from answers, against counting by hand and resampling."""

import numpy as np
import pytest
from scipy.stats import entropy

from experiments.metrics import summary


def test_accuracy_by_family_against_counting_by_hand():
    rng = np.random.default_rng(0)
    right, families = rng.random(60) < 0.7, np.array(["a", "b", "c"])[np.arange(60) % 3]
    found = summary.accuracy(right.tolist(), families.tolist())
    assert list(found) == ["a", "b", "c", "overall"]
    for name, own in [("overall", right), *((name, right[families == name]) for name in "abc")]:
        assert found[name]["share"] == pytest.approx(own.mean())
        assert (found[name]["right"], found[name]["of"]) == (own.sum(), len(own))
        assert found[name]["low"] < own.mean() < found[name]["high"]


def test_paired_difference_against_resampling_scenes():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(80), 3)
    hard = rng.random(80)[groups]
    first, second = rng.random(240) > 0.3 * hard, rng.random(240) > 0.8 * hard
    mean, half = summary.paired_difference(first, second, groups)
    assert mean == pytest.approx(second.mean() - first.mean())
    by_scene = (second.astype(float) - first).reshape(80, 3).mean(1)
    drawn = by_scene[rng.integers(0, 80, (4000, 80))].mean(1)
    assert half == pytest.approx(1.96 * drawn.std(), rel=0.05)
    assert summary.paired_difference([True, True], [True, False], [0, 0]) == [-0.5, None]


def test_divergence_is_that_of_scipy():
    rng = np.random.default_rng(0)
    first, second = 30 * rng.normal(size=(2, 5, 40)).astype(np.float32)
    first[0, 0] = -1e30  # a probability of zero
    p, q = (np.exp(x - np.logaddexp.reduce(x, -1, keepdims=True)) for x in np.float64([first, second]))
    np.testing.assert_allclose(summary.divergence(first, second), entropy(p, q, axis=-1), rtol=1e-9)
    assert not summary.divergence(first, first).any()
