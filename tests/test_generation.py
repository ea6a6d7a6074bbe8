"""Generation: rows, padding, precision, caches, sampling, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.engine.cache import Cache
from models.engine.decode import decode_step
from models.engine.plan import Plan
from models.engine.sampling import Sampling, choose, narrow
from models.errors import ConfigError
from tests.recomputed import recompute
from tests.tiny import PATCHES, make_inputs, make_llava
from tokencarve_jax import Compressor, Selection

NEW = 9


@pytest.fixture(scope="module")
def llava():
    return make_llava()


def test_keeping_everything_changes_nothing(llava):
    ids, pixels, mask = make_inputs()
    plain = llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=NEW)
    for keep in (1.0, PATCHES, ((2, "tokencarve", 1.0), (3, "tokencarve", PATCHES))):
        chex.assert_trees_all_equal(
            plain, llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=NEW, carve=keep)
        )


def test_bfloat16_stays_near_the_plain_path(llava):
    half, exact = make_llava(dtype=jnp.bfloat16), llava
    ids, pixels, _ = make_inputs(texts=(9,), images=(1,))
    tokens = np.random.default_rng(1).integers(8, 101, (1, NEW))
    state = half.prefill(half.prompt(ids, pixels), decode_capacity=NEW)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.cache.layers)} == {jnp.dtype(jnp.bfloat16)}
    step = jax.jit(decode_step)
    got, cache = [state.logits], state.cache
    for token in tokens.T:
        logits, cache = step(half, cache, jnp.asarray(token, jnp.int32))
        got.append(logits)
    want, _ = recompute(exact, exact.prompt(ids, pixels), Plan(), tokens)  # no cut: rounding may turn a close choice
    # 8 bits, and five layers of rounding.
    chex.assert_trees_all_close(np.concatenate(got), want[0].astype(np.float32), atol=0.06 * np.abs(want).max())


def test_the_side_of_the_padding_is_no_matter(llava):
    left, right = (llava.prompt(*make_inputs(3, (9, 4, 30), (1, 2, 1), side)) for side in ("left", "right"))
    chex.assert_trees_all_equal(left, right)


def test_a_row_answers_the_same_alone_and_in_a_ragged_batch(llava):
    images, carve = (1, 2), ((1, "tokencarve", 12), (3, "tokencarve", 3))
    ids, pixels, mask = make_inputs(3, (9, 4), images)
    together = np.asarray(llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=NEW, carve=carve))
    first = 0
    for row, count in enumerate(images):
        real = ids[row][mask[row] > 0][None]
        alone = llava.generate(real, pixels[first : first + count], max_new_tokens=NEW, carve=carve)
        assert np.asarray(alone)[0].tolist() == together[row].tolist()
        first += count


def test_logits_of_padded_rows_stand_where_their_tokens_do(llava):
    ids, pixels, mask = make_inputs(5, (9, 4), (1, 1), "left")
    left = llava(ids, pixels, mask)
    chex.assert_shape(left, (*ids.shape, 101))
    for row in range(2):
        alone = llava(ids[row][mask[row] > 0][None], pixels[row : row + 1])
        chex.assert_trees_all_close(left[row][mask[row] > 0], alone[0], atol=2e-5)
    assert not np.asarray(left[1][mask[1] == 0]).any()


def test_text_alone_needs_no_image(llava):
    ids = np.random.default_rng(0).integers(8, 101, (2, 6))
    new = np.asarray(llava.generate(ids, max_new_tokens=3, carve=0.5))
    scored = llava(np.concatenate([ids, new[:, :-1]], axis=1))
    np.testing.assert_array_equal(scored[:, 5:].argmax(-1), new)


def test_cache_is_short_in_every_layer_and_keeps_original_positions(llava):
    ids, pixels, _ = make_inputs(texts=(9,), images=(1,))
    prompt = llava.prompt(ids, pixels, bucket=1)
    state = llava.prefill(prompt, carve=6, decode_capacity=3)
    size = ids.shape[1] - PATCHES + 6
    chex.assert_shape(jax.tree.leaves(state.cache.layers), (2, size + 3, 10))
    assert state.cache.nbytes == 5 * 2 * (size + 3) * 2 * 10 * 4
    text = np.flatnonzero(ids[0] != llava.config.image_token_id)
    kept = np.flatnonzero(ids[0] == llava.config.image_token_id)[np.asarray(state.cuts[0].indices[0])]
    (segment,) = state.cache.segments  # nobody moved
    assert int(segment.next_position[0]) == ids.shape[1]
    assert sorted([*text, *kept]) == segment.positions[0, :size, 0].tolist()
    (segment,) = llava.prefill(prompt, carve=(("input", "norm", 6),)).cache.segments  # before the decoder: renumbered
    assert int(segment.next_position[0]) == size
    assert segment.positions[0, :, 0].tolist() == list(range(size))
    assert (np.unique(np.asarray(state.cuts[0].assignment[0])) >= -1).all()


def test_sliding_window_limits_what_is_seen():
    ids, pixels, _ = make_inputs(texts=(9,), images=(1,))
    wide, narrow_window = make_llava(), make_llava(sliding_window=6)
    far = ids.copy()
    far[0, 0] = 99 if ids[0, 0] != 99 else 98
    # Five layers of window 6 reach 25 positions back; the first token is further away than that.
    assert np.abs(narrow_window(ids, pixels)[0, -1] - narrow_window(far, pixels)[0, -1]).max() == 0
    assert np.abs(wide(ids, pixels)[0, -1] - wide(far, pixels)[0, -1]).max() > 0
    first = np.asarray(narrow_window.generate(ids, pixels, max_new_tokens=4))[0]
    again = ids[0].tolist()
    for token in first:
        assert int(narrow_window(np.asarray([again]), pixels)[0, -1].argmax()) == token
        again.append(int(token))


def test_streaming_gives_the_tokens_of_generate(llava):
    ids, pixels, mask = make_inputs()
    options = {"attention_mask": mask, "max_new_tokens": NEW, "carve": 7, "seed": 5}
    options["sampling"] = Sampling(temperature=1.3, top_k=9, top_p=0.8)
    whole = llava.generate(ids, pixels, **options)
    parts = list(llava.stream(ids, pixels, chunk=3, **options))
    assert [part.shape[1] for part in parts] == [1, 3, 3, 2]
    chex.assert_trees_all_equal(whole, jnp.concatenate(parts, axis=1))
    other = llava.generate(ids, pixels, **options | {"seed": 6})
    assert (np.asarray(whole) != np.asarray(other)).any(1).all()  # each row is drawn anew


def test_a_compressor_that_draws_draws_by_the_seed(llava):
    prompt = llava.prompt(*make_inputs())
    first, again, other = (
        np.asarray(llava.prefill(prompt, carve=((1, "random", 6),), seed=seed).cuts[0].indices) for seed in (1, 1, 2)
    )
    chex.assert_trees_all_equal(first, again)
    assert (first != other).any(1).all()


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (5, None), (None, 0.7), (12, 0.6), (1, None), (None, 1e-6)])
def test_narrowing_is_that_of_transformers(top_k, top_p):
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(1).normal(0, 2, (4, 33)).astype(np.float32)
    want = TemperatureLogitsWarper(0.7)(None, torch.tensor(logits))
    if top_k:
        want = TopKLogitsWarper(top_k)(None, want)
    if top_p:
        want = TopPLogitsWarper(top_p)(None, want)
    got = narrow(jnp.asarray(logits), Sampling(0.7, top_k, top_p))
    chex.assert_trees_all_close(np.asarray(got), want.numpy(), rtol=1e-6)


def test_samples_follow_the_distribution():
    logits = jnp.broadcast_to(jnp.asarray([[0.0, 1.0, 2.0, -1.0]]), (20_000, 4))
    drawn = choose(logits, jax.random.key(0), Sampling(temperature=1.0))
    share = np.bincount(np.asarray(drawn), minlength=4) / 20_000
    np.testing.assert_allclose(share, jax.nn.softmax(logits[0]), atol=0.012)  # over three standard errors


@pytest.mark.parametrize(
    ("carve", "message"),
    [
        (0, "keep must be"),
        (0.0, "keep"),
        (1.5, "keep"),
        (True, "expected None, a keep"),
        ("abc", r"cut 'abc': a part is missing; expected METHOD@PLACE=KEEP"),
        ("fastv@2=0", "'0' is neither a fraction"),
        ((1, "Fast-V", 3), "no method is named 'Fast-V', perhaps 'fastv'; there are"),
        (((0, "tokencarve", 3),), "from 1 to 4"),
        (((5, "tokencarve", 3),), "from 1 to 4"),
        (((2, "magic", 3),), "no method is named 'magic'; there are"),
        (((2, "tokencarve"),), r"expected \(place, compressor, keep\)"),
        (((3, "tokencarve", 9), (2, "tokencarve", 3)), "each once, in the order"),
        (((2, "tokencarve", 3), (3, "tokencarve", 9)), "only 3 are left"),
        (26, "26"),
    ],
)
def test_an_impossible_schedule_is_one_clear_error(llava, carve, message):
    ids, pixels, _ = make_inputs(texts=(9,), images=(1,))
    with pytest.raises((ValueError, TypeError), match=message):
        llava.generate(ids, pixels, max_new_tokens=2, carve=carve)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, pixels, mask: (ids[0], pixels, mask[0]), r"expected integers \[B, S\]"),
        (lambda ids, pixels, mask: (ids * 1.0, pixels, mask), r"expected integers \[B, S\]"),
        (lambda ids, pixels, mask: (ids, pixels, mask[:, 1:]), "expected that of input_ids"),
        (lambda ids, pixels, mask: (ids, pixels, mask * 0), "no real token"),
        (lambda ids, pixels, mask: (ids, pixels[:1], mask), "1 images bring 25"),
        (lambda ids, pixels, mask: (ids, None, mask), "0 images bring 25"),
        (lambda ids, pixels, mask: (ids, pixels[0], mask), "expected .images, channels"),
        (lambda ids, pixels, mask: (np.where(ids == 7, 8, ids), pixels, mask), r"\[0, 0\] image placeholders"),
    ],
)
def test_inputs_that_do_not_belong_together_are_one_clear_error(llava, change, message):
    ids, pixels, mask = change(*make_inputs())
    with pytest.raises(ValueError, match=message):
        llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=2)


def test_ids_of_another_tokenizer_are_the_checkpoints_fault(llava):
    """And so one line of any command."""
    ids, pixels, mask = make_inputs()
    with pytest.raises(ConfigError, match="vocabulary ends at 100; expected the tokenizer that belongs to the model"):
        llava.prompt(ids + 90, pixels, mask)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_max_new_tokens_is_a_positive_integer(llava, count):
    with pytest.raises(ValueError, match="max_new_tokens"):
        llava.generate(np.array([[9]]), max_new_tokens=count)


@pytest.mark.parametrize("settings", [{"temperature": -1}, {"temperature": 1, "top_k": 0}, {"top_p": 0.5}])
def test_sampling_settings_are_checked(settings):
    with pytest.raises(ValueError, match=r"expected|no effect"):
        Sampling(**settings)


def test_a_compressor_of_ones_own_takes_part_in_schedules(llava):
    def first(tokens, *, keep, query_attention):
        del query_attention
        return Selection(jnp.broadcast_to(jnp.arange(keep, dtype=jnp.int32), (*tokens.shape[:-1], keep)))

    ids, pixels, _ = make_inputs(texts=(9,), images=(1,))
    state = llava.prefill(llava.prompt(ids, pixels), carve=((2, Compressor("first", first), 4),))
    assert np.asarray(state.cuts[0].indices).tolist() == [[0, 1, 2, 3]]
    assert isinstance(state.cache, Cache)
