"""`carve_sequence`: text untouched, images shrunk, one budget or one per image, ragged rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc
from tests import oracle

carve_sequence = jax.jit(
    tc.carve_sequence, static_argnames=("keep", "attention_weight", "oversample", "information", "debias")
)


def sequence(batch, length, width=16, seed=0):
    rng = np.random.default_rng(seed)
    hidden = np.stack([oracle.decaying(rng, length, width) for _ in range(batch)])
    return hidden, rng.dirichlet(np.ones(length), size=batch).astype(np.float32)


# Text before, between and after two images of 12 tokens, at different places in each row.
IMAGES = np.stack([[np.arange(3, 15), np.arange(17, 29)], [np.arange(0, 12), np.arange(20, 32)]]).astype(np.int32)


def test_one_budget_per_image():
    hidden, attention = sequence(2, 34)
    out = carve_sequence(hidden, attention, IMAGES, keep=5)
    assert out.hidden.shape == (2, 34 - 24 + 10, 16)
    assert out.indices.shape == (2, 2, 5)
    assert out.kept.dtype == jnp.int32
    for row in range(2):
        kept = np.asarray(out.kept[row])
        assert (np.diff(kept) > 0).all()
        text = np.setdiff1d(np.arange(34), IMAGES[row])
        assert set(text) <= set(kept)
        np.testing.assert_array_equal(out.hidden[row][np.isin(kept, text)], hidden[row][text])
        for image in range(2):
            where = IMAGES[row, image]
            alone = tc.carve(hidden[row, where], attention[row, where], keep=5)
            np.testing.assert_array_equal(np.intersect1d(kept, where), where[alone.indices])
            np.testing.assert_array_equal(out.assignment[row, image], alone.assignment)
            np.testing.assert_allclose(out.hidden[row][np.isin(kept, where)], alone.tokens, rtol=1e-6, atol=1e-7)


def test_one_joint_budget_is_carve_on_all_visual_tokens():
    hidden, attention = sequence(2, 34)
    positions = IMAGES.reshape(2, 24)
    out = carve_sequence(hidden, attention, positions, keep=10)
    for row in range(2):
        alone = tc.carve(hidden[row, positions[row]], attention[row, positions[row]], keep=10)
        visual = np.isin(out.kept[row], positions[row])
        np.testing.assert_array_equal(out.kept[row][visual], positions[row][alone.indices])
        np.testing.assert_allclose(out.hidden[row][visual], alone.tokens, rtol=1e-6, atol=1e-7)


def test_order_of_the_positions_is_free():
    hidden, attention = sequence(1, 20)
    hidden[:, 4:16] += np.arange(12)[:, None]  # no ties
    plain = carve_sequence(hidden, attention, np.arange(4, 16)[None], keep=4, attention_weight=1.0)
    turned = carve_sequence(hidden, attention, np.arange(15, 3, -1)[None], keep=4, attention_weight=1.0)
    np.testing.assert_array_equal(plain.kept, turned.kept)
    np.testing.assert_allclose(plain.hidden, turned.hidden, rtol=1e-6)


def test_a_row_with_fewer_visual_tokens_drops_its_padding_first():
    hidden, attention = sequence(2, 24)
    # Row 0 has 12 visual tokens; row 1 has 7, then text, then padding, of which 5 slots fill the list.
    positions = np.stack([np.arange(2, 14), [*range(2, 9), *range(19, 24)]]).astype(np.int32)
    valid = np.stack([np.ones(12, bool), np.arange(12) < 7])
    out = carve_sequence(hidden, attention, positions, keep=5, valid=valid)
    short = tc.carve(hidden[1, 2:9], attention[1, 2:9], keep=5)
    np.testing.assert_array_equal(out.kept[1], [0, 1, *(2 + short.indices), *range(9, 19)])
    np.testing.assert_array_equal(out.assignment[1, 7:], [-1] * 5)


def test_a_row_without_any_image_keeps_all_of_its_text():
    hidden, attention = sequence(1, 20)
    out = carve_sequence(hidden, attention, np.arange(12, 20)[None], keep=3, valid=np.zeros((1, 8), bool))
    np.testing.assert_array_equal(out.kept[0, :12], np.arange(12))
    np.testing.assert_array_equal(out.hidden[0, :12], hidden[0, :12])


def test_features_are_gathered_at_the_same_positions():
    hidden, attention = sequence(2, 34)
    features = np.random.default_rng(7).normal(size=(2, 34, 6)).astype(np.float32)
    out = carve_sequence(hidden, attention, IMAGES, keep=5, features=features, information="svd")
    where = IMAGES[1, 0]
    alone = tc.carve(hidden[1, where], attention[1, where], keep=5, features=features[1, where], information="svd")
    np.testing.assert_array_equal(out.indices[1, 0], alone.indices)


@pytest.mark.parametrize(
    "options",
    [
        {"debias": True},
        {"oversample": 1.0},
        {"attention_weight": 0.0},
        {"information": "norm", "attention_weight": 0.2},
    ],
)
def test_every_option_reaches_carve(options):
    hidden, attention = sequence(1, 34)
    attention *= np.exp(0.2 * np.arange(34)).astype(np.float32)
    where = np.arange(4, 28)
    plain = carve_sequence(hidden, attention, where[None], keep=6)
    out = carve_sequence(hidden, attention, where[None], keep=6, **options)
    alone = tc.carve(hidden[0, where], attention[0, where], keep=6, **options)
    np.testing.assert_array_equal(out.assignment[0], alone.assignment)
    assert (np.asarray(out.assignment) != np.asarray(plain.assignment)).any()


def test_keeping_all_is_the_identity():
    hidden, attention = sequence(2, 34)
    out = carve_sequence(jnp.asarray(hidden, jnp.bfloat16), attention, IMAGES, keep=1.0)
    np.testing.assert_array_equal(out.hidden, jnp.asarray(hidden, jnp.bfloat16))
    np.testing.assert_array_equal(out.kept, np.broadcast_to(np.arange(34), (2, 34)))


def test_nan_in_the_text_stays_in_the_text():
    hidden, attention = sequence(2, 34)
    hidden[0, 0] = np.nan
    out = carve_sequence(hidden, attention, IMAGES, keep=5)
    assert np.isnan(np.asarray(out.hidden)).any(-1).sum() == 1


def test_bad_input_says_what_is_wrong():
    hidden, attention = sequence(2, 34)
    with pytest.raises(ValueError, match=r"hidden must be \[B, S, D\]"):
        tc.carve_sequence(hidden[0, 0], attention, IMAGES, keep=5)
    with pytest.raises(ValueError, match="attention must be"):
        tc.carve_sequence(hidden, attention[:, 1:], IMAGES, keep=5)
    with pytest.raises(TypeError, match="integers"):
        tc.carve_sequence(hidden, attention, IMAGES.astype(np.float32), keep=5)
    with pytest.raises(ValueError, match=r"\[2, N\] or \[2, I, N\]"):
        tc.carve_sequence(hidden, attention, IMAGES[:1], keep=5)
    with pytest.raises(ValueError, match="distinct"):
        tc.carve_sequence(hidden[:, :20], attention[:, :20], IMAGES, keep=5)
    with pytest.raises(ValueError, match="valid must be shaped"):
        tc.carve_sequence(hidden, attention, IMAGES, keep=5, valid=np.ones((2, 24), bool))
    with pytest.raises(ValueError, match=r"attention must be \(34,\)"):
        tc.carve_sequence(hidden[0], attention, IMAGES[0], keep=5)
    with pytest.raises(ValueError, match=r"\[N\] or \[I, N\]"):
        tc.carve_sequence(hidden[0], attention[0], IMAGES, keep=5)
    with pytest.raises(ValueError, match="keys head first"):
        tc.carve_sequence(hidden, attention[:, :8], IMAGES, keep=5)
    with pytest.raises(ValueError, match="features must be"):
        tc.carve_sequence(hidden, attention, IMAGES, keep=5, features=np.ones((2, 24, 3), np.float32))


@pytest.mark.parametrize("positions", [IMAGES, IMAGES.reshape(2, 24)], ids=["each image", "joint"])
@pytest.mark.parametrize("options", [{"information": "norm", "attention_weight": 0.3}])
def test_one_sequence_without_a_batch(positions, options):
    hidden, attention = sequence(2, 34)
    features = np.random.default_rng(7).normal(size=(2, 34, 6)).astype(np.float32)
    valid = np.random.default_rng(8).random(positions.shape) < 0.8
    more = {"keep": 5, **options}
    together = tc.carve_sequence(hidden, attention, positions, features=features, valid=valid, **more)
    rows = jax.vmap(lambda h, a, p, f, v: tc.carve_sequence(h, a, p, features=f, valid=v, **more))(
        hidden, attention, positions, features, valid
    )
    for row in range(2):
        for cut in (tc.carve_sequence, carve_sequence):
            alone = cut(hidden[row], attention[row], positions[row], features=features[row], valid=valid[row], **more)
            for other in (together, rows):
                expected = jax.tree.map(lambda leaf, row=row: leaf[row], other)
                assert jax.tree.map(jnp.shape, alone) == jax.tree.map(jnp.shape, expected)
                np.testing.assert_array_equal(alone.kept, expected.kept)
                np.testing.assert_array_equal(alone.assignment, expected.assignment)
                np.testing.assert_allclose(alone.hidden, expected.hidden, rtol=1e-6, atol=1e-7)
    assert rows.length == together.length == alone.length == 34


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, np.ndarray.tolist])
@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ((1, 0, 3), 34, r"within 0..33, got 0 to 34"),
        ((0, 1, 0), -1, r"within 0..33, got -1 to 31"),
        ((1, 0, 3), 22, r"distinct, got 22 twice in row 1"),
    ],
)
def test_concrete_positions_are_checked(kind, place, value, says):
    hidden, attention = sequence(2, 34)
    bad = IMAGES.copy()
    bad[place] = value
    given = kind(bad)
    with pytest.raises(ValueError, match=says):
        tc.carve_sequence(hidden, attention, given, keep=5)
    with pytest.raises(ValueError, match=says):
        tc.carve_sequence(hidden, attention, kind(bad.reshape(2, 24)), keep=5)
    with pytest.raises(ValueError, match=says.split(",")[0]):
        tc.carve_sequence(hidden[0], attention[0], kind(bad[place[0]]), keep=5)
    if kind is not np.ndarray.tolist:  # a constant that a traced function closes over is concrete all the same
        with pytest.raises(ValueError, match=says):
            jax.eval_shape(lambda h, a: tc.carve_sequence(h, a, given, keep=5), hidden, attention)
    carve_sequence(hidden, attention, bad, keep=5)  # traced: nobody can look


def test_the_same_position_in_two_rows_or_images_of_other_rows_is_fine():
    hidden, attention = sequence(2, 34)
    same = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    assert tc.carve_sequence(hidden, attention, same, keep=5).kept.shape == (2, 20)
