"""`visual_positions`: a Boolean mask becomes the static list that `carve_sequence` takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc

visual_positions = jax.jit(tc.visual_positions, static_argnames="count")
# Written by hand: x visual, t text, . padding, of which only `mask` tells.
CASES = [
    ("txxxtt", 3, [1, 2, 3], [1, 1, 1]),
    ("xtxtxt", 3, [0, 2, 4], [1, 1, 1]),
    ("xxxxxx", 6, [0, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 1]),
    ("tx..", 3, [1, 3, 2], [1, 0, 0]),
    ("..tx", 3, [3, 1, 0], [1, 0, 0]),
    (".tx.", 3, [2, 3, 0], [1, 0, 0]),
    ("tt..", 1, [3], [0]),
    (".", 1, [0], [0]),
]


def parse(line):
    letters = np.array(list(line))
    return letters == "x", letters != "."


@pytest.mark.parametrize(("line", "count", "positions", "valid"), CASES)
@pytest.mark.parametrize("function", [tc.visual_positions, visual_positions])
def test_by_hand(function, line, count, positions, valid):
    is_image, mask = parse(line)
    out = function(is_image, count=count, mask=mask)
    assert (out.positions.dtype, out.valid.dtype) == (jnp.int32, jnp.bool_)
    assert out.positions.tolist() == positions
    assert out.valid.tolist() == [bool(v) for v in valid]
    if not line.startswith("."):  # padded on the right, and there is enough: the mask is not needed
        unpacked, also = function(is_image, count=np.int64(count) if function is tc.visual_positions else count)
        assert (unpacked.tolist(), also.tolist()) == (positions, [bool(v) for v in valid])


def test_any_leading_axes_and_distinct_places():
    rng = np.random.default_rng(0)
    is_image = rng.random((2, 3, 19)) < 0.4
    count = int(is_image.sum(-1).max())
    positions, valid = tc.visual_positions(is_image, count=count)
    mapped = jax.vmap(lambda row: tc.visual_positions(row, count=count))(is_image)
    np.testing.assert_array_equal(mapped.positions, positions)
    np.testing.assert_array_equal(mapped.valid, valid)
    for at in np.ndindex(2, 3):
        assert len(set(positions[at].tolist())) == count
        np.testing.assert_array_equal(positions[at][valid[at]], np.flatnonzero(is_image[at]))
        rest = np.flatnonzero(~is_image[at])[::-1]
        np.testing.assert_array_equal(positions[at][~valid[at]], rest[: count - is_image[at].sum()])


def test_a_visual_token_under_padding_is_padding():
    out = tc.visual_positions(np.array([1, 1, 1, 1], bool), count=3, mask=np.array([0, 1, 1, 1], bool))
    assert (out.positions.tolist(), out.valid.all()) == ([1, 2, 3], True)


def test_the_text_of_unequal_rows_survives_the_cut():
    rows = ["ttxxxxxxtt", "txxxxxxt..", "..txxxxttt"]
    is_image, mask = (np.stack(part) for part in zip(*map(parse, rows), strict=True))
    visual, valid = tc.visual_positions(is_image, count=6, mask=mask)
    rng = np.random.default_rng(0)
    hidden, attention = rng.normal(size=(3, 10, 4)).astype(np.float32), rng.random((3, 10)).astype(np.float32)
    cut = tc.carve_sequence(hidden, attention, visual, keep=3, valid=valid)
    for row in range(3):
        text = np.flatnonzero(mask[row] & ~is_image[row])
        assert set(text) <= set(cut.kept[row].tolist())
        assert np.isin(cut.kept[row], np.flatnonzero(is_image[row])).sum() == 3


@pytest.mark.parametrize(
    ("line", "count", "says"),
    [
        ("txxx.", 2, "a row has 3 visual tokens"),
        ("ttx.", 3, "a row needs 5 slots"),
        ("t..", 4, r"count must be in 1..3"),
    ],
)
def test_concrete_rows_are_checked(line, count, says):
    is_image, mask = parse(line)
    with pytest.raises(ValueError, match=says):
        tc.visual_positions(jnp.asarray([is_image, is_image]), count=count, mask=np.stack([mask, mask]))
    if count < len(line):
        out = visual_positions(is_image, count=count, mask=mask)
        assert out.positions.shape == (count,)


def test_under_jit_the_first_ones_are_taken():
    out = visual_positions(np.array([0, 1, 0, 1, 1], bool), count=2)
    assert (out.positions.tolist(), out.valid.tolist()) == ([1, 3], [True, True])


def test_bad_input_says_what_is_wrong():
    good = np.array([0, 1, 0], bool)
    with pytest.raises(TypeError, match="is_image must be Boolean"):
        tc.visual_positions(good.astype(int), count=1)
    with pytest.raises(TypeError, match="mask must be Boolean"):
        tc.visual_positions(good, count=1, mask=good.astype(int))
    with pytest.raises(ValueError, match="shaped as is_image"):
        tc.visual_positions(good, count=1, mask=good[:2])
    with pytest.raises(ValueError, match=r"\[\.\.\., S\]"):
        tc.visual_positions(True, count=1)
    with pytest.raises(ValueError, match=r"1\.\.3"):
        tc.visual_positions(good, count=0)
    for count in (True, 1.0, jnp.int32(1)):
        with pytest.raises(TypeError, match="count must be an int"):
            tc.visual_positions(good, count=count)
