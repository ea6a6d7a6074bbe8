"""Methods for video against float64 oracles, and what they do with frames, padding and a single image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.oracles import video
from tokencarve_jax import COMPRESSORS, Tokens

# Frames, rows, columns; width; K; slots beyond the cells
SHAPES = [((4, 3, 5), 16, 23, 4), ((3, 2, 4), 24, 9, 0), ((6, 1, 7), 12, 8, 5), ((2, 4, 4), 9, 31, 1)]
CLIPS, KEY = 12, jax.random.key(3)
BY_FRAMES = ("evs", "everest", "vidcom2")
TIE = 1e-6


def clips(grid, width, room, seed=0):
    """A still scene in which some places move; padding anywhere, in every other clip a broken token."""
    frames, places = grid[0], grid[1] * grid[2]
    count, rng = frames * places + room, np.random.default_rng([seed, *grid, width])
    values = np.full((CLIPS, count, width), 1e6)
    valid = np.zeros((CLIPS, count), bool)
    for clip in range(CLIPS):
        scene = rng.normal(size=(places, width)) + rng.normal(size=width)
        moving = np.exp(rng.normal(size=(frames, places, 1)) - 1)
        steps = np.cumsum(moving * rng.normal(size=(frames, places, width)), axis=0)
        where = np.sort(rng.permutation(count)[: frames * places])
        values[clip, where], valid[clip, where] = (scene + steps).reshape(-1, width), True
        if clip % 2:
            values[clip, where[rng.integers(len(where))], 0] = [np.nan, np.inf][clip % 4 // 2]
    return values.astype(np.float32), valid


def shrink(name, values, valid, grid, keep):
    told = {"key": KEY} if name == "token-dynamics" else {}
    return COMPRESSORS[name](Tokens.of(values, valid=valid, grid=grid), keep=keep, **told)


@pytest.mark.parametrize("name", BY_FRAMES)
def test_oracle(name):
    clear = 0
    for grid, width, keep, room in SHAPES:
        values, valid = clips(grid, width, room)
        left = np.asarray(shrink(name, values, valid, grid, keep).indices)
        for clip in range(CLIPS):
            expected, margin = getattr(video, name)(values[clip], valid[clip], grid, keep)
            if margin > TIE:
                clear += 1
                assert left[clip].tolist() == expected, (grid, clip)
    assert clear >= 0.9 * len(SHAPES) * CLIPS


def test_oracle_of_clusters():
    clear = 0
    for grid, width, keep, room in SHAPES:
        values, valid = clips(grid, width, room)
        left = jax.tree.map(np.asarray, shrink("token-dynamics", values, valid, grid, keep))
        draws = np.asarray(jax.random.uniform(KEY, (keep,), jnp.float32))
        for clip in range(CLIPS):
            indices, assignment, margin = video.token_dynamics(values[clip], valid[clip], keep, draws)
            if margin < TIE:
                continue
            clear += 1
            assert left.indices[clip].tolist() == indices, (grid, clip)
            assert left.assignment[clip].tolist() == assignment, (grid, clip)
            for row, token in enumerate(indices):
                if np.isfinite(values[clip, token]).all():
                    mean = np.mean([values[clip, i] for i in range(len(assignment)) if assignment[i] == row], axis=0)
                    np.testing.assert_allclose(left.tokens.values[clip, row], mean, rtol=1e-5, atol=1e-5)
    assert clear >= 0.7 * len(SHAPES) * CLIPS, clear


@pytest.mark.parametrize("name", [*BY_FRAMES, "token-dynamics"])
def test_padding_broken_tokens_and_company_have_no_influence(name):
    grid, width, keep, room = SHAPES[0]
    values, valid = clips(grid, width, room)
    first = shrink(name, values, valid, grid, keep)
    other = np.where(valid[..., None], values, np.float32(np.nan))
    np.testing.assert_array_equal(shrink(name, other, valid, grid, keep).indices, first.indices)
    broken = values.copy()
    for clip in range(1, CLIPS, 2):
        bad = ~np.isfinite(values[clip]).all(-1)
        assert not np.isin(np.flatnonzero(bad), first.indices[clip]).any()
        broken[clip, bad] = np.nan
    np.testing.assert_array_equal(shrink(name, broken, valid, grid, keep).indices, first.indices)
    alone = shrink(name, values[3], valid[3], grid, keep)
    np.testing.assert_array_equal(alone.indices, first.indices[3])


def test_evs_keeps_the_first_frame_whole_or_says_why_not():
    values, valid = clips((4, 3, 5), 16, 0)
    left = np.asarray(shrink("evs", values[::2], valid[::2], (4, 3, 5), 15).indices)
    assert (left == np.arange(15)).all()
    with pytest.raises(ValueError, match="of 4 frames of 15 tokens it leaves 15 or more, got keep=14"):
        shrink("evs", values, valid, (4, 3, 5), 14)


def test_what_stands_still_goes_first():
    values = np.random.default_rng(0).normal(size=(1, 2, 6, 8)).repeat(4, axis=0).astype(np.float32)
    values[2:, 1, 4] *= -1  # one place changes, in frame 2
    flat = values.reshape(4 * 12, 8)
    assert np.asarray(shrink("evs", flat, None, (4, 2, 6), 13).indices)[-1] == 2 * 12 + 10
    assert 2 * 12 + 10 in np.asarray(shrink("everest", flat, None, (4, 2, 6), 1).indices)


@pytest.mark.parametrize("name", ["evs", "everest"])
def test_an_image_is_taken_evenly(name):
    values = np.random.default_rng(0).normal(size=(36, 8)).astype(np.float32)
    for grid in (None, (1, 4, 9)):
        expected = shrink("uniform", values, None, grid, 7).indices
        np.testing.assert_array_equal(shrink(name, values, None, grid, 7).indices, expected)


def test_a_frame_that_stands_out_gets_more():
    rng = np.random.default_rng(1)
    values = np.float32(0.1 * rng.normal(size=(5, 12, 16)) + rng.normal(size=16))
    values[3] = rng.normal(size=(12, 16))
    frames = np.asarray(shrink("vidcom2", values.reshape(60, 16), None, (5, 3, 4), 20).indices) // 12
    assert np.bincount(frames, minlength=5).argmax() == 3
    assert (np.bincount(frames, minlength=5) >= 1).all()


def test_gradients_and_range():
    values = clips((3, 2, 4), 24, 0)[0][0]
    for name in (*BY_FRAMES, "token-dynamics"):
        got = jax.grad(lambda v, name=name: jnp.square(shrink(name, v, None, (3, 2, 4), 9).tokens.values).sum())(values)
        assert np.isfinite(got).all()
        assert (got != 0).any()
        small = shrink(name, values, None, (3, 2, 4), 9).indices
        for scale in (1e-30, 1e30):
            np.testing.assert_array_equal(shrink(name, values * np.float32(scale), None, (3, 2, 4), 9).indices, small)
