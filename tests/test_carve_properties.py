"""The invariants of `carve`, whatever the arrays hold."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import tokencarve_jax as tc
from tests.strategies import BUCKETS, KINDS, Bucket, generate, generators

CASES = 60  # of one draw
few = settings(max_examples=4, deadline=None, derandomize=True)


@few
@given(rng=generators)
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
def test_invariants(bucket, rng):
    tokens, attention, valid, _ = generate(bucket, rng, CASES)
    check(bucket, tokens, attention, valid, bucket.carve(jnp.asarray(tokens, bucket.dtype), attention, valid=valid))


@few
@given(rng=generators)
@pytest.mark.parametrize("bucket", [Bucket(1, 3, 1), Bucket(9, 4, 9, dtype="bfloat16")], ids=str)
def test_all_are_kept(bucket, rng):
    tokens, attention, valid, _ = generate(bucket, rng, CASES)
    out = bucket.carve(jnp.asarray(tokens, bucket.dtype), attention, valid=valid)
    np.testing.assert_array_equal(out.tokens.astype(jnp.float32), tokens)


@few
@given(rng=generators)
@pytest.mark.parametrize("bucket", [bucket for bucket in BUCKETS if bucket.dtype == "float32"], ids=str)
def test_scaling_scales(bucket, rng):
    tokens, attention, valid, _ = generate(bucket, rng, CASES)
    scale = np.float32(2.0 ** rng.integers(-20, 20))  # a power of two, so that rounding is the same too
    out, scaled = (bucket.carve(jnp.asarray(array), attention, valid=valid) for array in (tokens, tokens * scale))
    np.testing.assert_array_equal(scaled.assignment, out.assignment)
    np.testing.assert_array_equal(scaled.tokens, np.asarray(out.tokens) * scale)


@few
@given(rng=generators)
@pytest.mark.parametrize("bucket", [bucket for bucket in BUCKETS if bucket.weight == 0.37], ids=str)
def test_permuting_permutes(bucket, rng):
    """With weight 37/100 fused scores never tie below 63 tokens."""
    tokens, attention, valid, kind = generate(bucket, rng, CASES)
    generic = np.flatnonzero(kind == KINDS.index("generic"))
    apart = generic[_separated(tokens[generic], attention[generic])]
    order = rng.permuted(np.broadcast_to(np.arange(bucket.n), attention.shape), axis=1)
    shuffled = [np.take_along_axis(array, order, 1) for array in (attention, valid)]
    out = bucket.carve(jnp.asarray(tokens), attention, valid=valid)
    permuted = bucket.carve(np.take_along_axis(tokens, order[..., None], 1), shuffled[0], valid=shuffled[1])
    back = np.take_along_axis(order, np.asarray(permuted.indices), 1)
    place = np.argsort(back, axis=1)
    np.testing.assert_array_equal(np.take_along_axis(back, place, 1)[apart], np.asarray(out.indices)[apart])
    rows = np.take_along_axis(np.asarray(permuted.tokens), place[..., None], 1)
    np.testing.assert_allclose(rows[apart], np.asarray(out.tokens)[apart], rtol=1e-5, atol=1e-5)


def test_some_cases_are_fit_to_be_permuted():
    bucket = BUCKETS[0]
    tokens, attention, _, kind = generate(bucket, np.random.default_rng(0), 500)
    generic = kind == KINDS.index("generic")
    assert len(_separated(tokens[generic], attention[generic])) > 5


def check(bucket, tokens, attention, valid, out):
    """Every invariant that holds whatever the arrays hold; all arguments batched, all NumPy."""
    n, k = bucket.n, bucket.keep
    rows, indices, assignment = (
        np.asarray(leaf) for leaf in (out.tokens.astype(jnp.float32), out.indices, out.assignment)
    )
    count = len(tokens)
    survivors = tc.plan(n, k, bucket.oversample).survivors
    usable = valid & np.isfinite(attention) & np.isfinite(tokens).all(-1)
    chex.assert_shape([rows, indices, assignment], [(count, k, bucket.d), (count, k), (count, n)])
    chex.assert_type([out.tokens, indices, assignment], [bucket.dtype, jnp.int32, jnp.int32])
    assert ((indices >= 0) & (indices < n)).all(), "an index out of range"
    assert (np.diff(indices, axis=-1) > 0).all(), "indices not ascending and distinct"
    assert ((assignment >= -1) & (assignment < k)).all(), "an assignment out of range"
    assert (np.take_along_axis(assignment, indices, 1) == np.arange(k)).all(), "a kept token is not its own row"
    alive = (assignment >= 0).sum(-1)
    assert ((alive >= k) & (alive <= survivors)).all()
    enough = usable.sum(-1) >= survivors
    assert (alive[enough] == survivors).all(), "a survivor got lost"
    # Padding and broken tokens: kept only if they must be, padding last, and never in company.
    kept_usable = np.take_along_axis(usable, indices, 1).sum(-1)
    assert (kept_usable == np.minimum(usable.sum(-1), k)).all(), "an unusable token took a place"
    kept_valid = np.take_along_axis(valid, indices, 1).sum(-1)
    assert (kept_valid == np.minimum(valid.sum(-1), k)).all(), "padding took a place"
    membership = assignment[:, None, :] == np.arange(k)[:, None]  # [count, K, N]
    size = membership.sum(-1)
    alone = size == 1
    assert (alone | ~(membership & ~usable[:, None]).any(-1)).all(), "an unusable token was merged"
    # Values: a token by itself is untouched, a group is its mean, and lies in the box of its members.
    original = np.take_along_axis(tokens, indices[..., None], 1)
    np.testing.assert_array_equal(rows[alone], original[alone])
    clean = np.where(usable[..., None], tokens, 0).astype(np.float64)
    mean = np.einsum("bkn,bnd->bkd", membership, clean) / size[..., None]
    eps = float(jnp.finfo(bucket.dtype).eps)
    reach = np.abs(np.where(membership[..., None], clean[:, None], 0)).max(2)
    slack = 2 * max(eps, 1e-6) * reach + 1e-7
    assert (np.abs(rows - mean) <= slack)[~alone].all(), "a merged row is not the mean of its members"
    low = np.where(membership[..., None], clean[:, None], np.inf).min(2)
    high = np.where(membership[..., None], clean[:, None], -np.inf).max(2)
    inside = (rows >= low - slack) & (rows <= high + slack)
    assert inside[~alone].all(), "a merged row left the hull of its members"


def _separated(tokens, attention):
    """The cases in which no score, norm or similarity nearly ties with another, so that rounding decides nothing."""
    tokens = tokens.astype(np.float64)
    u, s, _ = np.linalg.svd(tokens, full_matrices=False)
    norm = np.linalg.norm(tokens, axis=-1)
    unit = tokens / norm[..., None]
    upper = np.triu_indices(tokens.shape[1], 1)
    pairs = (unit @ unit.swapaxes(1, 2))[:, upper[0], upper[1]]

    def apart(values, gap):
        values = np.sort(values, axis=-1)
        return (np.diff(values, axis=-1) > gap * np.abs(values[..., 1:])).all(-1)

    # Singular values have to be apart too: near a degenerate pair C itself is not well defined.
    return np.flatnonzero(
        apart(np.abs(u * s[:, None]).sum(-1), 3e-5)
        & apart(s, 1e-2)
        & apart(norm, 1e-5)
        & apart(attention, 0)
        & (np.diff(np.sort(pairs, -1), axis=-1) > 1e-6).all(-1)
    )
