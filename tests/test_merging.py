"""What is dropped joins the survivors, and where groups stand: against loops in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_tokens import case, gathered
from tokencarve_jax import COMPRESSORS, Compressor, Selection, Tokens
from tokencarve_jax.merging import median_positions, merge_rest


def merged(tokens, indices, assignment, usable, weights, own):
    """One set: values, sizes, assignment, and the rows that something joined which would be dropped."""
    values, sizes = np.asarray(tokens.values, np.float64), np.asarray(tokens.sizes, np.float64)
    decided, _, full = gathered(tokens, indices, assignment, weights, own)
    joined = set()
    for n in range(len(values)):
        if full[n] >= 0 or not usable[n]:
            continue
        cosines = [
            values[n] @ values[i] / np.linalg.norm(values[n]) / np.linalg.norm(values[i]) if usable[i] else -2
            for i in indices
        ]
        full[n] = int(np.argmax(cosines))
        joined.add(full[n])
    for row in joined:
        members = [n for n in range(len(values)) if full[n] == row]
        decided[row] = sum(sizes[n] * values[n] for n in members) / sum(sizes[n] for n in members)
    total = [sum(sizes[n] for n in range(len(values)) if full[n] == row) for row in range(len(indices))]
    return decided, total, full, sorted(joined)


@pytest.mark.parametrize("kind", ["nothing joins", "groups", "weights", "values"])
def test_all_that_is_dropped_joins_its_most_similar_survivor(kind):
    for seed in range(12):
        tokens, indices, assignment, rng = case(seed)
        finite = np.isfinite(np.asarray(tokens.values)).all(-1)
        usable = np.asarray(tokens.valid) & finite & (rng.random(13) < 0.8)
        usable[indices[0]] = True
        tokens = dataclasses.replace(
            tokens,
            values=tokens.values.at[indices[0]].set(rng.normal(size=5).astype(np.float32)),
            valid=tokens.valid.at[indices[0]].set(True),
        )
        weights = rng.random(13).astype(np.float32) if kind == "weights" else None
        own = rng.normal(size=(4, 5)).astype(np.float32) if kind == "values" else None
        alone = kind in ("nothing joins", "values")
        if alone:
            assignment = np.where(np.isin(np.arange(13), indices), assignment, -1)
        selection = Selection(
            jnp.asarray(indices), None if alone else jnp.asarray(assignment), weights=weights, values=own
        )
        left = merge_rest(tokens, selection, jnp.asarray(usable))
        values, sizes, full, joined = merged(tokens, indices, assignment, usable, weights, own)
        assert left.assignment.tolist() == full
        assert left.tokens.sizes.tolist() == sizes
        np.testing.assert_allclose(left.tokens.values, values, rtol=1e-5, atol=1e-6)
        same = np.array([full.count(row) == 1 for row in range(4)])
        if own is None:
            np.testing.assert_array_equal(left.tokens.values[same], tokens.values[indices[same]])
        else:
            rest = np.setdiff1d(np.arange(4), joined)
            np.testing.assert_array_equal(left.tokens.values[rest], own[rest])


def first(tokens, *, keep, text_attention=None, text_valid=None, query_attention=None):
    return Selection(jnp.broadcast_to(jnp.arange(keep, dtype=jnp.int32), (*tokens.shape[:-1], keep)))


def test_a_compressor_merges_what_it_drops_but_for_what_is_no_number():
    values = np.array([[1, 0], [0, 1], [1, 1], [3, 1], [1, 3], [1, 2], [2, 1]], np.float32)
    attention, text = np.ones(7, np.float32), np.ones((2, 7), np.float32)
    attention[3], text[0, 4], text[1, 5] = np.nan, np.inf, np.nan
    told = {"query_attention": attention, "text_attention": text, "text_valid": [True, False]}
    row = Compressor("first", first, rest="merged")
    left = row(Tokens.of(values, sizes=[1, 1, 1, 1, 1, 1, 3]), keep=2, **told)
    assert left.assignment.tolist() == [0, 1, 0, -1, -1, 1, 0]  # a tie goes to the first
    np.testing.assert_allclose(left.tokens.values, [[8 / 5, 4 / 5], [1 / 2, 3 / 2]], rtol=1e-6)
    assert left.tokens.sizes.tolist() == [5, 2]
    with pytest.raises(ValueError, match="compressor 'first': rest must be one of dropped, merged, got 'kept'"):
        dataclasses.replace(row, rest="kept")


def test_tokencarve_as_released_is_untouched_and_the_calibrated_one_drops_nothing():
    rng = np.random.default_rng(0)
    tokens, attention = Tokens.of(rng.normal(size=(3, 31, 8)).astype(np.float32)), rng.random((3, 31), np.float32)
    released, calibrated = (
        COMPRESSORS[name](tokens, keep=7, query_attention=attention) for name in ("tokencarve", "tokencarve-calibrated")
    )
    np.testing.assert_array_equal(released.indices, calibrated.indices)
    assert (np.asarray(released.assignment) < 0).sum() == 3 * (31 - 10)
    assert (np.asarray(calibrated.assignment) >= 0).all()
    assert calibrated.tokens.sizes.sum(-1).tolist() == [31] * 3


@pytest.mark.parametrize("axes", [1, 3])
def test_medians_are_the_lower_ones_of_each_group_and_axis(axes):
    rng = np.random.default_rng(axes)
    for _ in range(20):
        positions = rng.integers(0, 40, (2, 3, 17, axes))
        assignment = rng.integers(-1, 5, (2, 3, 17))
        assignment[..., :5] = np.arange(5)
        got = jax.jit(median_positions, static_argnums=2)(jnp.asarray(positions), jnp.asarray(assignment), 5)
        for place in np.ndindex(2, 3, 5, axes):
            group = sorted(positions[*place[:2], :, place[3]][assignment[place[:2]] == place[2]])
            assert got[place] == group[(len(group) - 1) // 2]
