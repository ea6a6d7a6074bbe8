"""Prefill, cuts and decoding against a loop without cache, without batch and without padding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.engine.cache import Cache
from models.engine.decode import decode_step
from models.engine.sampling import Sampling, choose, narrow
from models.nn.attention import attend
from tests.tiny import PATCHES, make_inputs, make_llava
from tokencarve_jax import Compressor, Selection, carve_sequence, last_query_attention

NEW = 9


@pytest.fixture(scope="module")
def llava():
    return make_llava()


def forward_over_carved(llava, ids, pixels, cuts, new):
    """Logits after the prompt and after each of the `new` tokens, in one forward without any cache.

    Layers before a cut run the prompt whole, later ones what the cut left; the new tokens follow, and in every layer
    they see the prompt's survivors of all cuts, and no one else.
    """
    decoder = llava.decoder
    prompt = decoder.embed_tokens(jnp.asarray(ids))
    visual = np.flatnonzero(ids == llava.config.image_token_id)
    if pixels is not None:
        prompt = prompt.at[visual].set(llava.image_features(jnp.asarray(pixels)).reshape(-1, prompt.shape[-1]))
    old, fresh = prompt[None], decoder.embed_tokens(jnp.asarray(new))[None]
    alive = np.arange(len(ids))  # original positions of the prompt's rows
    trail = []  # per layer: rotated keys, values and positions of the prompt
    attention = None
    for index, layer in enumerate(decoder.layers):
        if index in cuts:
            carved = carve_sequence(old, attention, jnp.asarray(np.searchsorted(alive, visual))[None], keep=cuts[index])
            visual = visual[np.asarray(carved.indices[0])]
            alive, old = alive[np.asarray(carved.kept[0])], carved.hidden
        at = decoder.rotation(jnp.asarray(alive)[None, :, None])
        query, (key, value) = layer.query(old, at), layer.key_value(old, at)
        attention = last_query_attention(query[:, -1], key)
        mask = np.tril(np.ones((len(alive), len(alive)), bool))[None]
        trail.append((key, value, alive))
        old = layer.finish(old, layer.self_attn.o_proj(attend(query, key, value, mask=jnp.asarray(mask))))
    at = decoder.rotation(len(ids) + jnp.arange(len(new))[None, :, None])
    for layer, (key, value, rows) in zip(decoder.layers, trail, strict=True):
        query, (new_key, new_value) = layer.query(fresh, at), layer.key_value(fresh, at)
        seen = np.concatenate(
            [np.tile(np.isin(rows, alive), (len(new), 1)), np.tril(np.ones((len(new), len(new)), bool))], axis=1
        )
        key, value = jnp.concatenate([key, new_key], 1), jnp.concatenate([value, new_value], 1)
        fresh = layer.finish(fresh, layer.self_attn.o_proj(attend(query, key, value, mask=jnp.asarray(seen)[None])))
    return np.asarray(decoder.logits(jnp.concatenate([old[0, -1:], fresh[0]])))


@pytest.mark.parametrize("cuts", [{}, {2: 7}, {4: 1}, {1: 15, 3: 4}])
def test_cached_decoding_equals_a_forward_over_the_carved_sequence(llava, cuts):
    ids, pixels, _ = make_inputs(texts=(9,), images=(1,))
    carve = tuple((layer, "tokencarve", keep) for layer, keep in cuts.items()) or None
    tokens = np.random.default_rng(1).integers(8, 101, NEW)
    state = llava.prefill(llava.prompt(ids, pixels), carve=carve, decode_capacity=NEW)
    step = jax.jit(decode_step)
    got, cache = [state.logits], state.cache
    for token in tokens:
        logits, cache = step(llava, cache, jnp.asarray([token], jnp.int32))
        got.append(logits)
    want = forward_over_carved(llava, ids[0], pixels, cuts, tokens)
    chex.assert_trees_all_close(np.concatenate(got), want, atol=2e-4 * np.abs(want).max())
    best = np.asarray(llava.generate(ids, pixels, max_new_tokens=NEW, carve=carve))[0]
    want = forward_over_carved(llava, ids[0], pixels, cuts, best)  # as many tokens as before: nothing compiles anew
    assert want.argmax(-1)[:-1].tolist() == best.tolist()


HALF_TOLERANCE = 0.06  # of the largest logit: bfloat16 has 8 bits, and five layers of rounding lie between


def test_bfloat16_stays_near_the_plain_path(llava):
    half = make_llava(dtype=jnp.bfloat16)
    ids, pixels, _ = make_inputs(texts=(9,), images=(1,))
    tokens = np.random.default_rng(1).integers(8, 101, NEW)
    state = half.prefill(half.prompt(ids, pixels), decode_capacity=NEW)
    step = jax.jit(decode_step)
    got, cache = [state.logits], state.cache
    assert {leaf.dtype for leaf in jax.tree.leaves(cache.layers)} == {jnp.dtype(jnp.bfloat16)}
    for token in tokens:
        logits, cache = step(half, cache, jnp.asarray([token], jnp.int32))
        got.append(logits)
    want = forward_over_carved(half, ids[0], pixels, {}, tokens)  # no cut: rounding may turn a close choice
    chex.assert_trees_all_close(np.concatenate(got), want, atol=HALF_TOLERANCE * np.abs(want).max())
    exact = forward_over_carved(llava, ids[0], pixels, {}, tokens)
    chex.assert_trees_all_close(want, exact, atol=HALF_TOLERANCE * np.abs(exact).max())


def test_keeping_everything_changes_nothing(llava):
    ids, pixels, mask = make_inputs()
    plain = llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=NEW)
    for keep in (1.0, PATCHES, ((2, "tokencarve", 1.0), (3, "tokencarve", PATCHES))):
        chex.assert_trees_all_equal(
            plain, llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=NEW, carve=keep)
        )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("carve", [None, 6, ((1, "tokencarve", 12), (3, "tokencarve", 3))])
def test_a_row_answers_the_same_alone_and_in_a_ragged_batch(llava, side, carve):
    texts, images = (9, 4, 30, 6), (1, 2, 1, 1)
    ids, pixels, mask = make_inputs(3, texts, images, side)
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
    out = llava.generate(ids, max_new_tokens=3, carve=0.5)
    row = np.asarray(out)[1]
    assert forward_over_carved(llava, ids[1], None, {}, row[:-1]).argmax(-1).tolist() == row.tolist()


def test_cache_is_short_in_every_layer_and_keeps_original_positions(llava):
    ids, pixels, _ = make_inputs(texts=(9,), images=(1,))
    prompt = llava.prompt(ids, pixels, bucket=1)
    state = llava.prefill(prompt, carve=6, decode_capacity=3)
    size = ids.shape[1] - PATCHES + 6
    chex.assert_shape(jax.tree.leaves(state.cache.layers), (2, size + 3, 10))
    assert state.cache.nbytes == 5 * 2 * (size + 3) * 2 * 10 * 4
    assert int(state.cache.segments[0].next_position[0]) == ids.shape[1]
    positions = np.asarray(state.cache.segments[0].positions[0, :size, 0])
    text = np.flatnonzero(ids[0] != llava.config.image_token_id)
    assert set(text) < set(positions.tolist())
    assert (np.diff(positions) > 0).all()
    kept = np.flatnonzero(ids[0] == llava.config.image_token_id)[np.asarray(state.cuts[0].indices[0])]
    assert sorted([*text, *kept]) == positions.tolist()
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


def test_a_second_call_compiles_nothing(llava):
    compiled = []

    def listen(event: str, duration: float, **_: object) -> None:
        del duration
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    ids, pixels, mask = make_inputs(6, (9, 4), (1, 1))
    llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=5, carve=7)
    assert compiled  # the listener hears
    compiled.clear()
    ids, pixels, mask = make_inputs(8, (15, 6), (1, 1), "right")  # another length, the same bucket
    llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=5, carve=7)
    assert not compiled
    llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=5, carve=8)
    assert compiled


def test_rows_end_at_a_stop_token_and_are_padded():
    llava = make_llava()
    ids, pixels, mask = make_inputs()
    free = np.asarray(llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=NEW))
    stop = int(free[0, 3])
    first = int(np.flatnonzero(free[0] == stop)[0])
    object.__setattr__(llava.config, "eos_token_ids", (stop,))
    try:
        out = np.asarray(llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=NEW))
    finally:
        object.__setattr__(llava.config, "eos_token_ids", ())
    assert out[0, : first + 1].tolist() == free[0, : first + 1].tolist()
    assert (out[0, first + 1 :] == 3).all()
    ends = [np.flatnonzero(row == stop) for row in free]
    longest = max((int(end[0]) + 1 if len(end) else NEW) for end in ends)
    assert out.shape[1] == longest


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.3, top_k=9, top_p=0.8)])
def test_streaming_gives_the_tokens_of_generate(llava, sampling):
    ids, pixels, mask = make_inputs()
    options = {"attention_mask": mask, "max_new_tokens": NEW, "carve": 7, "sampling": sampling, "seed": 5}
    whole = llava.generate(ids, pixels, **options)
    parts = list(llava.stream(ids, pixels, chunk=3, **options))
    assert [part.shape[1] for part in parts] == [1, 3, 3, 2]
    chex.assert_trees_all_equal(whole, jnp.concatenate(parts, axis=1))


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
        ("abc", "expected None, a keep"),
        (((0, "tokencarve", 3),), "from 1 to 4"),
        (((5, "tokencarve", 3),), "from 1 to 4"),
        (((2, "magic", 3),), "unknown compressor 'magic'; registered are"),
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
        (lambda ids, pixels, mask: (ids + 90, pixels, mask), "the vocabulary ends at 100"),
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
