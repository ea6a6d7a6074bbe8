"""The routes of the information score against float64, on kind and on hostile matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc
from tests import oracle
from tokencarve_jax.scores import information

contribution = jax.jit(tc.information_contribution, static_argnames="method")
SHAPES = [(60, 90), (90, 60), (60, 60)]  # where "subspace" is "gram"; tests/test_subspace.py has larger ones
# Worst relative error of C, with room above what is seen, on spectra that decay as 1/j.
BOUND = {"svd": 1e-4, "gram": 0.1, "jacobi": 0.1, "subspace": 0.1}


def relative_error(tokens, method):
    exact = oracle.information(tokens)
    return np.abs(np.asarray(contribution(tokens, method=method)) - exact).max() / exact.min()


@pytest.mark.parametrize("method", BOUND)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_error_on_a_decaying_spectrum(method, n, d):
    assert relative_error(oracle.decaying(np.random.default_rng(0), n, d), method) < BOUND[method]


@pytest.mark.parametrize("method", ["svd", "gram", "subspace"])
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


@pytest.mark.parametrize(("n", "d"), [(40, 60), (260, 280)])
def test_zero_rows_score_zero_and_broken_rows_have_no_influence(n, d):
    tokens = oracle.decaying(np.random.default_rng(2), n, d)
    tokens[3] = 0
    broken = tokens.copy()
    broken[3, 0], broken[3, 1] = np.nan, np.inf
    for method in ("svd", "gram", "subspace", "norm"):
        clean = np.asarray(contribution(tokens, method=method))
        assert clean[3] == 0
        np.testing.assert_array_equal(contribution(broken, method=method), clean)


@pytest.mark.parametrize("place", [0, 101, 255])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_broken_entry_is_seen_in_rows_of_any_length(place, value):
    """The maximum of a row with a NaN is a number on some CPUs, so that no maximum can be asked."""
    tokens = np.random.default_rng(6).normal(size=(64, 256)).astype(np.float32)
    broken, zero = tokens.copy(), tokens.copy()
    broken[9, place], zero[9] = value, 0
    score = np.asarray(contribution(broken, method="norm"))
    np.testing.assert_array_equal(score, contribution(zero, method="norm"))
    rows = tc.carve(broken, np.arange(64, dtype=np.float32), keep=20, information="norm")
    assert rows.assignment[9] == -1
    assert np.isfinite(rows.tokens).all()


@pytest.mark.parametrize("kind", ["decaying", "small rows", "small rows, few channels"])
def test_the_score_lies_between_its_bounds(kind):
    """Also of rows that are so small beside others that float32 knows nothing of their direction."""
    rng = np.random.default_rng(3)
    if kind == "decaying":
        tokens = oracle.decaying(rng, 30, 50)
    else:
        tokens = rng.normal(size=(32, 30, 40 if "few" in kind else 2000)).astype(np.float32)
        tokens *= np.geomspace(1, 1e-8, 30, dtype=np.float32)[:, None]
    norm = np.asarray(contribution(tokens, method="norm"))
    np.testing.assert_allclose(norm, np.linalg.norm(tokens, axis=-1), rtol=1e-6)
    for method in ("svd", "gram", "subspace"):
        score = np.asarray(contribution(tokens, method=method))
        assert (score >= norm * 0.9999).all()
        assert (score <= norm * 30**0.5 * 1.0001).all()


def test_unit_scale_is_a_power_of_two_that_brings_the_largest_entry_near_one():
    tokens = np.random.default_rng(7).normal(size=(2, 30, 50)).astype(np.float32)
    tokens *= np.array([1e36, 1e-30], np.float32)[:, None, None]
    scaled, power = map(np.asarray, information.to_unit_scale(jnp.asarray(tokens)))
    np.testing.assert_array_equal(scaled * power, tokens)
    largest = np.abs(scaled).max((1, 2))
    assert ((largest >= 0.5) & (largest < 1)).all()


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
