"""`carve` against the float64 oracle, and its contract."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc
from tests import oracle

STATIC = ("keep", "attention_weight", "oversample", "information", "debias")
carve = jax.jit(tc.carve, static_argnames=STATIC)

# (N, D, K, weight, number of inputs): odd and even K, N above and below D.
CASES = [
    (80, 96, 17, "0.5", 20),
    (80, 48, 40, "0.3", 8),
    (80, 128, 27, "1", 6),
    (80, 96, 64, "0.5", 6),  # fewer than 1.5 K tokens exist
    (576, 640, 128, "0.5", 2),
    (576, 256, 127, "0.25", 2),
    (80, 96, 24, "0", 6),
]


def inputs(n, d, count, seed=0):
    rng = np.random.default_rng(seed)
    tokens = np.stack([oracle.decaying(rng, n, d, power=rng.uniform(0.3, 1.0)) for _ in range(count)])
    return tokens, rng.dirichlet(np.ones(n), size=count).astype(np.float32)


@pytest.mark.parametrize(("n", "d", "kept", "weight", "count"), CASES)
def test_equals_the_oracle(n, d, kept, weight, count):
    tokens, attention = inputs(n, d, count, seed=n + kept)
    exact = carve(tokens, attention, keep=kept, attention_weight=float(weight), information="svd")
    fast = carve(tokens, attention, keep=kept, attention_weight=float(weight), information="gram")
    shared = []
    for i in range(count):
        rows, indices, assignment = oracle.carve(tokens[i], attention[i], kept, weight=weight)
        np.testing.assert_array_equal(exact.indices[i], indices)
        np.testing.assert_array_equal(exact.assignment[i], assignment)
        np.testing.assert_allclose(exact.tokens[i], rows, atol=1e-5, rtol=1e-5)
        shared.append(len(set(indices) & set(fast.indices[i].tolist())) / kept)
    assert np.mean(shared) >= 0.95


def test_leading_dimensions_vmap_and_eager_agree_with_one_at_a_time():
    tokens, attention = inputs(48, 32, 6)
    one = [tc.carve(t, a, keep=13, information="svd") for t, a in zip(tokens, attention, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one)
    batched = carve(tokens, attention, keep=13, information="svd")
    mapped = jax.jit(jax.vmap(lambda t, a: tc.carve(t, a, keep=13, information="svd")))(tokens, attention)
    grid = carve(tokens.reshape(2, 3, 48, 32), attention.reshape(2, 3, 48), keep=13, information="svd")
    flat = jax.tree.map(lambda leaf: leaf.reshape(6, *leaf.shape[2:]), grid)
    for other in (batched, mapped, flat):
        chex.assert_trees_all_close(other, stacked, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("keep", [1.0, 20, 0.999])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeping_all_is_the_identity_bit_for_bit(keep, dtype):
    tokens, attention = inputs(20, 8, 3)
    tokens = jnp.asarray(tokens, dtype).at[0, 3].set(jnp.nan)
    out = carve(tokens, attention, keep=keep)
    assert out.tokens.dtype == dtype
    np.testing.assert_array_equal(out.tokens.astype(jnp.float32), tokens.astype(jnp.float32))
    np.testing.assert_array_equal(out.indices, np.broadcast_to(np.arange(20), (3, 20)))
    np.testing.assert_array_equal(out.assignment, out.indices)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_the_same_choice_once(dtype):
    tokens, attention = inputs(40, 24, 4)
    tokens = jnp.asarray(tokens, dtype)
    half = carve(tokens, attention, keep=11)
    full = carve(tokens.astype(jnp.float32), attention, keep=11)
    np.testing.assert_array_equal(half.assignment, full.assignment)
    np.testing.assert_array_equal(half.tokens, full.tokens.astype(dtype))


def test_equal_scores_keep_the_lower_indices():
    out = carve(np.ones((12, 4), np.float32), np.ones(12, np.float32), keep=4, information="norm")
    # S = 6: anchors 0..2, others 3..5; all similar alike, so 3 and 4 merge, and both into 0.
    np.testing.assert_array_equal(out.indices, [0, 1, 2, 5])
    np.testing.assert_array_equal(out.assignment, [0, 1, 2, 0, 0, 3] + [-1] * 6)
    np.testing.assert_array_equal(out.tokens, np.ones((4, 4)))


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.7, 0.9])
def test_rounding_decides_no_tie_in_the_fused_score(weight):
    # The two rankings are mirror images of each other around the weight's balance: many exact ties in real numbers.
    n = 40
    tokens = np.diag(np.random.default_rng(0).permutation(np.arange(1.0, n + 1))).astype(np.float32)
    attention = np.random.default_rng(1).permutation(np.arange(1.0, n + 1)).astype(np.float32)
    out = carve(tokens, attention, keep=9, attention_weight=weight, information="norm")
    _, indices, assignment = oracle.carve(
        tokens, attention, 9, weight=str(weight), contribution=np.linalg.norm(tokens, axis=1)
    )
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_array_equal(out.assignment, assignment)


def test_without_oversampling_nothing_merges():
    tokens, attention = inputs(30, 16, 1)
    out = carve(tokens[0], attention[0], keep=7, oversample=1.0)
    np.testing.assert_array_equal(out.tokens, tokens[0][out.indices])
    assert int((out.assignment >= 0).sum()) == 7


def test_single_score_ablations_ignore_the_other_score():
    tokens, attention = inputs(30, 16, 2)
    by_attention = carve(tokens[0], attention[0], keep=6, attention_weight=1.0, oversample=1)
    np.testing.assert_array_equal(by_attention.indices, np.sort(np.argsort(-attention[0], stable=True)[:6]))
    by_information = carve(tokens[0], attention[0], keep=6, attention_weight=0, oversample=1, information="svd")
    np.testing.assert_array_equal(by_information.indices, np.sort(np.argsort(-oracle.information(tokens[0]))[:6]))


def test_features_replace_the_tokens_in_the_score_only():
    tokens, attention = inputs(30, 16, 2)
    features = np.random.default_rng(3).normal(size=(30, 5)).astype(np.float32)
    out = carve(tokens[0], attention[0], keep=9, features=features, information="svd")
    rows, indices, _ = oracle.carve(tokens[0], attention[0], 9, contribution=oracle.information(features))
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_allclose(out.tokens, rows, atol=1e-6)


def test_debias_finds_the_peak_that_the_trend_hides():
    attention = np.exp(0.2 * np.arange(32)).astype(np.float32)
    attention[3] *= 5
    kwargs = {"keep": 1, "attention_weight": 1.0}
    assert carve(np.eye(32), attention, **kwargs).indices.tolist() == [31]
    assert carve(np.eye(32), attention, debias=True, **kwargs).indices.tolist() == [3]


def test_debias_fits_on_usable_tokens_only():
    attention = np.exp(-0.2 * np.arange(32)).astype(np.float32)
    attention[3] *= 5
    attention[20:] = 1e6  # a rise, were it looked at
    tokens = np.eye(32, dtype=np.float32)
    tokens[20:26] = np.nan
    out = carve(tokens, attention, keep=20, debias=True, attention_weight=1.0, oversample=1, valid=np.arange(32) < 26)
    first = carve(tokens[:20], attention[:20], keep=4, debias=True, attention_weight=1.0, oversample=1)
    some = carve(tokens, attention, keep=4, debias=True, attention_weight=1.0, oversample=1, valid=np.arange(32) < 26)
    np.testing.assert_array_equal(out.indices, np.arange(20))
    np.testing.assert_array_equal(some.indices, first.indices)


def test_a_token_with_broken_features_ranks_last():
    tokens, attention = inputs(30, 16, 1)
    features = np.random.default_rng(3).normal(size=(30, 5)).astype(np.float32)
    attention[0, 8] = 1  # it would be the first
    well = np.setdiff1d(np.arange(30), [8])
    broken = features.copy()
    broken[8, 2] = np.nan
    out = carve(tokens[0], attention[0], keep=9, features=broken, attention_weight=0.9)
    alone = carve(tokens[0][well], attention[0][well], keep=9, features=features[well], attention_weight=0.9)
    assert out.assignment[8] == -1
    np.testing.assert_array_equal(out.indices, well[alone.indices])


def test_padding_has_no_influence_and_is_kept_only_when_needed():
    tokens, attention = inputs(30, 16, 1)
    tokens, attention = tokens[0], attention[0]
    padded = np.concatenate([tokens, np.full((10, 16), 7.0, np.float32)])
    more = np.concatenate([attention, np.ones(10, np.float32)])
    valid = np.arange(40) < 30
    alone, within = carve(tokens, attention, keep=12), carve(padded, more, keep=12, valid=valid)
    np.testing.assert_array_equal(within.indices, alone.indices)
    np.testing.assert_array_equal(within.assignment, [*alone.assignment.tolist(), *[-1] * 10])
    for few in (0, 1, 5, 11, 12, 13, 15, 18):  # around K = 12 and S = 18
        out = carve(padded, more, keep=12, valid=np.arange(40) < few)
        assert (out.indices < few).sum() == min(few, 12)
        assert (np.asarray(out.assignment)[few:][np.asarray(out.assignment)[few:] >= 0] >= min(few, 12)).all()


def test_broken_tokens_come_last_and_touch_nobody():
    tokens, attention = inputs(30, 16, 1)
    clean, attention = tokens[0], attention[0]
    dirty, watched = clean.copy(), attention.copy()
    dirty[4, 2], dirty[9] = np.nan, np.inf
    watched[20], watched[21] = np.nan, np.inf
    sick = [4, 9, 20, 21]
    well = np.setdiff1d(np.arange(30), sick)
    out = carve(dirty, watched, keep=12)
    alone = carve(clean[well], attention[well], keep=12)
    np.testing.assert_array_equal(out.indices, well[alone.indices])
    np.testing.assert_array_equal(np.asarray(out.assignment)[well], alone.assignment)
    np.testing.assert_allclose(out.tokens, alone.tokens, rtol=1e-6, atol=1e-7)
    assert (np.asarray(out.assignment)[sick] == -1).all()
    # Where they must be kept, they go before padding and stay by themselves.
    must = carve(dirty, watched, keep=28, valid=np.arange(30) < 29)
    assert set(must.indices.tolist()) == set(range(29)) - {21}


@pytest.mark.parametrize("scale", [1e-33, 1e-20, 1e20, 3e37])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    tokens, attention = inputs(30, 16, 1)
    tokens = tokens[0] / np.abs(tokens[0]).max()
    plain, scaled = carve(tokens, attention[0], keep=9), carve(tokens * np.float32(scale), attention[0], keep=9)
    np.testing.assert_array_equal(plain.assignment, scaled.assignment)
    np.testing.assert_allclose(scaled.tokens / np.float32(scale), plain.tokens, rtol=1e-5, atol=1e-6)


def test_numbers_below_the_smallest_normal_one_count_as_zero():
    attention = np.linspace(0.1, 1, 12, dtype=np.float32)
    tokens = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    tiny = tokens.copy()
    tiny[5] *= np.float32(1e-40)
    zero = tokens.copy()
    zero[5] = 0
    ours, theirs = carve(tiny, attention, keep=5), carve(zero, attention, keep=5)
    np.testing.assert_array_equal(ours.assignment, theirs.assignment)
    np.testing.assert_allclose(ours.tokens, theirs.tokens, atol=1e-38)
    everything = carve(tokens * np.float32(1e-40), attention, keep=5)
    nothing = carve(np.zeros_like(tokens), attention, keep=5)
    np.testing.assert_array_equal(everything.assignment, nothing.assignment)


def test_all_zero_tokens_still_give_k_of_them():
    out = carve(np.zeros((16, 4), np.float32), np.zeros(16, np.float32), keep=5)
    assert out.indices.shape == (5,)
    assert not np.isnan(out.tokens).any()


def test_gradients_are_finite_and_those_of_the_means():
    tokens, attention = inputs(24, 8, 1)

    def loss(t, a):
        return (tc.carve(t, a, keep=7).tokens ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    by_tokens, by_attention = gradient(tokens[0], attention[0])
    out = carve(tokens[0], attention[0], keep=7)
    assignment = np.asarray(out.assignment)
    size = np.array([(assignment == row).sum() for row in range(7)])
    expected = np.zeros((24, 8))
    for n, row in enumerate(assignment):
        if row >= 0:
            expected[n] = 2 * out.tokens[row] / size[row]
    np.testing.assert_allclose(by_tokens, expected, rtol=1e-5)
    assert not by_attention.any()
    for hostile in (np.zeros((24, 8), np.float32), np.ones((24, 8), np.float32)):
        assert np.isfinite(gradient(hostile, attention[0])[0]).all()


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"keep": 0}, ValueError, "1..8"),
        ({"keep": 9}, ValueError, "1..8"),
        ({"keep": 0.0}, ValueError, "fraction"),
        ({"keep": 1.5}, ValueError, "fraction"),
        ({"keep": float("nan")}, ValueError, "fraction"),
        ({"keep": True}, TypeError, "bool"),
        ({"keep": "abc"}, TypeError, "str"),
        ({"keep": np.bool_(True)}, TypeError, "bool"),
        ({"keep": np.array(3)}, TypeError, "ndarray"),
        ({"keep": jnp.int32(3)}, TypeError, "cannot be traced"),
        ({"keep": np.int64(9)}, ValueError, "1..8"),
        ({"keep": np.float32("nan")}, ValueError, "fraction"),
        ({"keep": 3, "oversample": np.bool_(True)}, TypeError, "oversample"),
        ({"keep": 3, "attention_weight": np.True_}, TypeError, "attention_weight"),
        ({"keep": 3, "oversample": 3.0}, ValueError, "oversample"),
        ({"keep": 3, "attention_weight": 1.1}, ValueError, "attention_weight"),
        ({"keep": 3, "attention_weight": "x"}, TypeError, "attention_weight"),
        ({"keep": 3, "information": "qr"}, ValueError, "'svd', 'gram'"),
        ({"keep": 3, "valid": np.ones(7, bool)}, ValueError, "valid"),
        ({"keep": 3, "features": np.ones((7, 2), np.float32)}, ValueError, "features"),
    ],
)
def test_bad_options_say_what_is_wrong(kwargs, error, says):
    with pytest.raises(error, match=says.replace(".", r"\.")):
        tc.carve(np.ones((8, 2), np.float32), np.ones(8, np.float32), **kwargs)


@pytest.mark.parametrize(
    ("numpy", "python"),
    [
        ({"keep": np.int64(7)}, {"keep": 7}),
        ({"keep": np.uint8(7)}, {"keep": 7}),
        ({"keep": np.float64(0.222)}, {"keep": 0.222}),
        # 0.1 * 25 = 2.5 rounds to 2; float32's 0.1 is a little more, and would round to 3.
        ({"keep": np.float32(0.1)}, {"keep": 0.1}),
        ({"keep": 7, "oversample": np.float16(1.2)}, {"keep": 7, "oversample": 1.2}),
        ({"keep": 7, "oversample": np.int32(1)}, {"keep": 7, "oversample": 1}),
        ({"keep": 7, "attention_weight": np.float32(0.3)}, {"keep": 7, "attention_weight": 0.3}),
    ],
)
def test_numpy_scalars_are_python_numbers(numpy, python):
    tokens, attention = inputs(25, 8, 1)
    ours, theirs = (carve(tokens, attention, information="norm", **given) for given in (numpy, python))
    chex.assert_trees_all_equal(ours, theirs)
    budget = tc.plan(np.int64(25), numpy["keep"], numpy.get("oversample", 1.5))
    assert all(type(count) is int for count in (budget.kept, budget.survivors, budget.merged, budget.anchors))
    assert hash(budget) == hash(tc.plan(25, python["keep"], python.get("oversample", 1.5)))


def test_bad_arrays_say_what_is_wrong():
    good, row = np.ones((8, 2), np.float32), np.ones(8, np.float32)
    with pytest.raises(TypeError, match="tokens must be floating"):
        tc.carve(good.astype(int), row, keep=3)
    with pytest.raises(TypeError, match="attention must be floating"):
        tc.carve(good, row.astype(int), keep=3)
    with pytest.raises(ValueError, match="attention must have shape"):
        tc.carve(good, row[:7], keep=3)
    with pytest.raises(ValueError, match=r"\[\.\.\., N, D\]"):
        tc.carve(row, row, keep=3)
    with pytest.raises(ValueError, match="at least one token"):
        tc.carve(good[:0], row[:0], keep=0.5)
    with pytest.raises(TypeError, match="cannot be traced"):
        jax.jit(lambda t, a, k: tc.carve(t, a, keep=k))(good, row, 3)
