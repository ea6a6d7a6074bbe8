"""The routes of the information score against float64, on kind and on hostile matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc
from tests import oracle

contribution = jax.jit(tc.information_contribution, static_argnames="method")
SHAPES = [(60, 90), (90, 60), (60, 60)]
# Worst relative error of C, with room above what is seen, on spectra that decay as 1/j.
BOUND = {"svd": 1e-4, "gram": 0.1, "jacobi": 0.1}


def relative_error(tokens, method):
    exact = oracle.information(tokens)
    return np.abs(np.asarray(contribution(tokens, method=method)) - exact).max() / exact.min()


@pytest.mark.parametrize("method", BOUND)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_error_on_a_decaying_spectrum(method, n, d):
    assert relative_error(oracle.decaying(np.random.default_rng(0), n, d), method) < BOUND[method]


@pytest.mark.parametrize("method", ["svd", "gram"])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_a_dominating_direction_does_not_drown_the_rest(method, n, d):
    """One massive token, a common mean, massive channels: plain float32 Gram loses up to 70 % of C there."""
    rng = np.random.default_rng(1)
    tokens = oracle.decaying(rng, n, d, power=0.3, spread=0.1)
    massive, mean, channels = tokens.copy(), tokens.copy(), tokens.copy()
    massive[7] *= 1000
    mean += 3 * rng.normal(size=d).astype(np.float32)
    channels[:, 5] += 30
    for hostile in (massive, mean, channels):
        assert relative_error(hostile, method) < 2e-3


def test_zero_rows_score_zero_and_broken_rows_have_no_influence():
    tokens = oracle.decaying(np.random.default_rng(2), 40, 60)
    tokens[3] = 0
    broken = tokens.copy()
    broken[3, 0], broken[3, 1] = np.nan, np.inf
    for method in ("svd", "gram", "norm"):
        clean = np.asarray(contribution(tokens, method=method))
        assert clean[3] == 0
        np.testing.assert_array_equal(contribution(broken, method=method), clean)


@pytest.mark.parametrize("place", [0, 101, 255])
def test_a_single_nan_is_seen_in_rows_of_any_length(place):
    """The maximum of such a row is a number on some CPUs, so that no maximum can be asked whether one is there."""
    tokens = np.random.default_rng(6).normal(size=(64, 256)).astype(np.float32)
    broken, zero = tokens.copy(), tokens.copy()
    broken[9, place], zero[9] = np.nan, 0
    score = np.asarray(contribution(broken, method="norm"))
    np.testing.assert_array_equal(score, contribution(zero, method="norm"))
    rows = tc.carve(broken, np.arange(64, dtype=np.float32), keep=20, information="norm")
    assert rows.assignment[9] == -1
    assert np.isfinite(rows.tokens).all()


def test_the_score_lies_between_its_bounds():
    tokens = oracle.decaying(np.random.default_rng(3), 30, 50)
    norm = np.asarray(contribution(tokens, method="norm"))
    np.testing.assert_allclose(norm, np.linalg.norm(tokens, axis=1), rtol=1e-6)
    for method in ("svd", "gram"):
        score = np.asarray(contribution(tokens, method=method))
        assert (score >= norm * 0.9999).all()
        assert (score <= norm * 30**0.5 * 1.0001).all()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scale_is_carried_through(scale):
    tokens = oracle.decaying(np.random.default_rng(4), 20, 30)
    np.testing.assert_allclose(
        contribution(tokens * np.float32(scale), method="svd") / np.float32(scale),
        contribution(tokens, method="svd"),
        rtol=1e-4,
    )


def test_batches_dtypes_and_errors():
    tokens = jnp.asarray(oracle.decaying(np.random.default_rng(5), 20, 30), jnp.bfloat16)
    both = contribution(jnp.stack([tokens, 2 * tokens])[None], method="svd")
    assert both.shape == (1, 2, 20)
    assert both.dtype == jnp.float32
    np.testing.assert_allclose(both[0, 1], 2 * both[0, 0], rtol=1e-5)
    with pytest.raises(TypeError, match="floating"):
        tc.information_contribution(np.ones((3, 4), int))
    with pytest.raises(ValueError, match="N, D"):
        tc.information_contribution(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="'svd', 'gram'"):
        tc.information_contribution(np.ones((3, 4), np.float32), method="qr")
