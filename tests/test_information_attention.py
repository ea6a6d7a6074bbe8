"""The last query's attention row, its trend, and the budget arithmetic."""

import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc


def by_hand(query, keys, mask, scale):
    heads, kv = query.shape[0], keys.shape[1]
    total = 0
    for h in range(heads):
        logits = keys[:, h // (heads // kv)].astype(np.float64) @ query[h].astype(np.float64) * scale
        weights = np.where(mask, np.exp(logits - logits[mask].max()), 0)
        total = total + weights / weights.sum() / heads
    return total


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_the_mean_of_the_heads_softmax(heads, kv, scale):
    rng = np.random.default_rng(heads)
    query = rng.normal(size=(2, heads, 10)).astype(np.float32)
    keys = rng.normal(size=(2, 15, kv, 10)).astype(np.float32)
    mask = rng.random((2, 15)) < 0.7
    out = tc.last_query_attention(query, keys, mask=mask, scale=scale)
    assert out.dtype == jnp.float32
    for b in range(2):
        expected = by_hand(query[b], keys[b], mask[b], 10**-0.5 if scale is None else scale)
        np.testing.assert_allclose(out[b], expected, rtol=1e-5, atol=1e-7)
    everything = tc.last_query_attention(query, keys, scale=scale)
    np.testing.assert_allclose(
        everything, tc.last_query_attention(query, keys, mask=np.ones((2, 15), bool), scale=scale)
    )


def test_a_row_without_any_key_is_zero_and_half_precision_works():
    query = jnp.full((2, 4), 3e4, jnp.float16)
    keys = jnp.full((5, 2, 4), 3e4, jnp.float16)
    np.testing.assert_array_equal(tc.last_query_attention(query, keys, mask=np.zeros(5, bool)), np.zeros(5))
    np.testing.assert_allclose(tc.last_query_attention(query, keys), np.full(5, 0.2), rtol=1e-6)


@pytest.mark.parametrize(
    ("query", "keys", "mask", "says"),
    [
        ((4, 8), (5, 3, 8), None, "4 query heads"),
        ((4, 8), (5, 2, 7), None, "equal d"),
        ((2, 4, 8), (3, 5, 2, 8), None, "leading dimensions"),
        ((4, 8), (5, 2, 8), (4,), "mask must be"),
        ((8,), (5, 2, 8), None, "expected query"),
    ],
)
def test_shapes_that_do_not_fit(query, keys, mask, says):
    with pytest.raises(ValueError, match=says):
        tc.last_query_attention(
            np.ones(query, np.float32), np.ones(keys, np.float32), mask=mask and np.ones(mask, bool)
        )


def test_trend_is_fitted_on_valid_positive_finite_entries_only():
    trend = np.exp(-0.3 * np.arange(20)).astype(np.float32)
    flat = tc.remove_trend(trend)
    np.testing.assert_allclose(flat / flat[0], np.ones(20), rtol=1e-5)
    spoilt = trend.copy()
    spoilt[[2, 5, 9]] = 0, np.nan, np.inf
    valid = np.arange(20) < 15
    spoilt[15:] = 1e6
    out = np.asarray(tc.remove_trend(spoilt, valid=valid))
    fine = np.setdiff1d(np.arange(15), [2, 5, 9])
    np.testing.assert_allclose(out[fine] / out[0], np.ones(fine.size), rtol=1e-5)
    assert out[2] == 0
    assert np.isfinite(tc.remove_trend(np.zeros(4, np.float32))).all()


@pytest.mark.parametrize(
    ("n", "keep", "expected"),
    [
        (576, 0.333, (192, 288, 96)),
        (576, 0.222, (128, 192, 64)),
        (576, 0.111, (64, 96, 32)),
        (576, 127, (127, 190, 63)),
        (576, 1.0, (576, 576, 0)),
        (576, 1, (1, 1, 0)),
        (576, 1e-9, (1, 1, 0)),
        (2, 1, (1, 1, 0)),
        (5, 4, (4, 5, 1)),
    ],
)
def test_plan(n, keep, expected):
    budget = tc.plan(n, keep)
    assert (budget.kept, budget.survivors, budget.merged) == expected
    assert budget.merged <= budget.survivors - budget.anchors


def test_plan_never_merges_more_than_it_has():
    for n in range(1, 40):
        for keep in range(1, n + 1):
            for oversample in (1, 1.1, 1.5, 2):
                budget = tc.plan(n, keep, oversample)
                assert keep <= budget.survivors <= n
                assert budget.merged <= budget.survivors - budget.anchors
                assert budget.merged == 0 or budget.anchors > 0
    assert tc.plan(100, 10, 1.1).survivors == 11
