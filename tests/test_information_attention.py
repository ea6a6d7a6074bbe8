"""The last query's attention row, its trend, and the budget arithmetic."""

import jax
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


# Unequal rows of 15: whole, padded on the right, padded on the left, and one that may not look at its middle.
ROWS = np.ones((4, 15), bool)
ROWS[1, 11:] = ROWS[2, :3] = ROWS[3, 5:9] = False


def layer_by_hand(query, keys, mask, positions, *, scale, window, softcap):
    """Head by head and key by key, in float64."""
    heads, kv = query.shape[0], keys.shape[1]
    at = max(p for p, look in zip(positions, mask, strict=True) if look)
    row = np.zeros(len(keys))
    for h in range(heads):
        weight = np.zeros(len(keys))
        for s, key in enumerate(keys[:, h // (heads // kv)]):
            if mask[s] and (window is None or at - positions[s] < window):
                logit = scale * float(np.dot(key.astype(np.float64), query[h].astype(np.float64)))
                weight[s] = np.exp(logit if softcap is None else softcap * np.tanh(logit / softcap))
        row += weight / weight.sum() / heads
    return row


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("softcap", [None, 1.7])
@pytest.mark.parametrize("spread", [False, True], ids=["0..S-1", "positions"])
def test_window_positions_and_softcap_by_hand(window, softcap, spread):
    rng = np.random.default_rng(5)
    query = rng.normal(size=(4, 6, 10)).astype(np.float32)
    keys = rng.normal(size=(4, 15, 2, 10)).astype(np.float32)
    # As after an earlier cut: ascending with gaps, another row another, and rows that do not start at 0.
    where = np.cumsum(rng.integers(1, 4, size=(4, 15)), axis=1) if spread else np.tile(np.arange(15), (4, 1))
    options = {"scale": 0.9, "window": window, "softcap": softcap}
    out = tc.last_query_attention(query, keys, mask=ROWS, positions=where if spread else None, **options)
    traced = jax.jit(lambda q, k, m, p: tc.last_query_attention(q, k, mask=m, positions=p, **options))
    mapped = jax.vmap(lambda q, k, m, p: tc.last_query_attention(q, k, mask=m, positions=p, **options))
    for row in range(4):
        expected = layer_by_hand(query[row], keys[row], ROWS[row], where[row], **options)
        for got in (out, traced(query, keys, ROWS, where), mapped(query, keys, ROWS, where)):
            np.testing.assert_allclose(got[row], expected, rtol=2e-5, atol=1e-7)
            np.testing.assert_array_equal(np.asarray(got[row]) == 0, expected == 0)
    if window == 1:
        assert (np.asarray(out).argmax(-1) == [14, 10, 14, 14]).all()


def test_positions_shared_by_all_rows_unsigned_and_without_a_window():
    rng = np.random.default_rng(6)
    query, keys = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 6, 10), (4, 15, 2, 10)))
    shared = np.arange(15, dtype=np.uint8) * 2
    each = np.broadcast_to(shared.astype(np.int32), (4, 15))
    for mask in (None, ROWS, np.zeros_like(ROWS)):
        ours = tc.last_query_attention(query, keys, mask=mask, window=5, positions=shared)
        np.testing.assert_array_equal(ours, tc.last_query_attention(query, keys, mask=mask, window=5, positions=each))
    assert not ours.any()
    plain = tc.last_query_attention(query, keys)
    np.testing.assert_array_equal(plain, tc.last_query_attention(query, keys, positions=each))
    np.testing.assert_array_equal(plain, tc.last_query_attention(query, keys, window=np.int64(15)))
    # Wider than the sequence: unsigned positions must not wrap around below zero.
    wide = tc.last_query_attention(query, keys, window=100, positions=shared)
    np.testing.assert_allclose(wide, plain, rtol=1e-6)


def test_a_capped_logit_keeps_its_gradient_finite():
    query, keys = np.full((2, 4), 3e4, np.float32), np.full((5, 2, 4), 3e4, np.float32)
    gradient = jax.grad(lambda q: tc.last_query_attention(q, keys, softcap=50.0, window=2)[3])(query)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"window": 0}, ValueError, "window must be positive"),
        ({"window": 2.5}, TypeError, "window must be an int"),
        ({"window": True}, TypeError, "window must be"),
        ({"window": jnp.int32(3)}, TypeError, "window must be"),
        ({"softcap": 0.0}, ValueError, "softcap must be positive"),
        ({"softcap": float("nan")}, ValueError, "softcap must be positive"),
        ({"softcap": "30"}, TypeError, "softcap must be"),
        ({"positions": np.arange(5.0)}, TypeError, "positions must be integers"),
        ({"positions": np.arange(6)}, ValueError, "positions must be"),
        ({"mask": np.zeros(5, np.float32)}, TypeError, "additive"),
    ],
)
def test_options_of_a_layer_that_make_no_sense(options, error, says):
    with pytest.raises(error, match=says):
        tc.last_query_attention(np.ones((4, 8), np.float32), np.ones((5, 2, 8), np.float32), **options)


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ((3, 2, 15, 8), {}),
        ((3, 4, 2, 8), {"mask": np.ones((3, 2), bool)}),  # S = 2: only the mask tells
        ((3, 4, 2, 8), {"positions": np.arange(2)}),
    ],
)
def test_keys_given_head_first(keys, options):
    with pytest.raises(ValueError, match=r"head first: expected \[\.\.\., S, H_kv, d\]"):
        tc.last_query_attention(np.ones((3, 4, 8), np.float32), np.ones(keys, np.float32), **options)


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
