"""Cuts at every place, and how their caches decode: what a forward without a cache, layer by layer, gives."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.engine import plan
from models.engine.decode import DECODE_CAPACITY_BUCKET, decode_step
from models.engine.embed import see, tower_request
from models.engine.official import pyramiddrop_schedule, sparsevlm_schedule
from models.engine.plan import Cut
from tests.recomputed import recompute
from tests.tiny import PATCHES, make_inputs, make_llava
from tokencarve_jax import COMPRESSORS, Compressor, Selection

NEW, LAYERS = 4, 4


def joins(tokens, *, keep):
    """Every token joins the row of its place times K / N: groups with sizes."""
    count = tokens.shape[-1]
    row = jnp.broadcast_to(jnp.arange(count) * keep // count, tokens.shape).astype(jnp.int32)
    first = jnp.broadcast_to(-(-jnp.arange(keep) * count // keep), (*tokens.shape[:-1], keep)).astype(jnp.int32)
    return Selection(first, row)


JOINS = Compressor("joins", joins, calibrated=True)


FASTV_MERGED = dataclasses.replace(COMPRESSORS["fastv"], rest="merged")


def cut(place, name, keep, **options):
    return Cut(place, COMPRESSORS[name] if isinstance(name, str) else name, keep, **options)


ONE, TWO = (1, 1), (2, 1)  # images of each row
# Every choice of a cut is met here, alone or beside another; each costs seconds of compilation.
SCHEDULES = {
    "one-left": (ONE, (cut(1, "tokencarve", 15), cut(3, "tokencarve", 1))),
    "two-mixed": (
        TWO,
        (cut(1, "fastv", 13, earlier="full"), cut(3, "tokencarve", 5, positions="renumbered")),
    ),
    "three": (
        ONE,
        (
            cut(1, "norm", 15, positions="renumbered", earlier="full"),
            cut(2, "tokencarve", 9),
            cut(3, "fastv", 4, positions="renumbered", earlier="full"),
        ),
    ),
    "image-full": (
        TWO,
        (cut(2, "tokencarve", 6, scope="image", earlier="full"), cut(3, "v2drop", 3, scope="image")),
    ),
    "calibrated-full": (TWO, (cut(1, JOINS, 12, earlier="full"), cut(3, JOINS, 5, positions="renumbered"))),
    "input-kept": (ONE, (cut("input", "divprune", 8, positions="kept"),)),
    "input-layer": (TWO, (cut("input", "visionzip", 12), cut(2, "tokencarve", 5))),
    "median-joint": (
        TWO,
        (
            cut(1, FASTV_MERGED, 14, positions="median", calibrated="distances"),
            cut(3, "tokencarve", 5, positions="median", earlier="full"),
        ),
    ),
    "median-image": (
        TWO,
        (
            cut(2, "tokencarve-calibrated", 6, scope="image", positions="median"),
            cut(3, "tokencarve", 3, scope="image", positions="median", earlier="full"),
        ),
    ),
    "median-tower": (TWO, (cut("tower", "tome", 10, positions="median"), cut(2, "tokencarve", 4, positions="median"))),
    "tower-layer": (ONE, (cut("tower", "visionzip", 9), cut(2, "tokencarve", 4, earlier="full"))),
}


def inputs(images):
    return make_inputs(texts=(12, 5), images=images)


OFFICIAL = {
    "pyramiddrop": (TWO, pyramiddrop_schedule(LAYERS, 2 * PATCHES)),
    "sparsevlm": (TWO, sparsevlm_schedule(LAYERS, 2 * PATCHES, 28)),
}


def ours(model, prompt, schedule, ids):
    """Logits of prefill and of one step for each new token, and the cuts' records."""
    prefilled = model.prefill(prompt, carve=schedule, decode_capacity=DECODE_CAPACITY_BUCKET)
    logits, cache = [prefilled.logits], prefilled.cache
    step = jax.jit(decode_step)
    for column in ids.T:
        after, cache = step(model, cache, jnp.asarray(column))
        logits.append(after)
    return np.stack(logits, 1), prefilled


def check_positions(prefilled, rows):
    """In every layer a row's cache has the reference's keys, and new tokens go on where it does."""
    for layer, number in enumerate(prefilled.cache.segment_of):
        segment = prefilled.cache.segments[number]
        for row, one in enumerate(rows):
            held = np.asarray(segment.positions[row, :, 0])[np.asarray(segment.valid[row])]
            np.testing.assert_array_equal(np.sort(held), np.sort(one.sets[layer].positions))
            assert segment.next_position[row] == one.sets[layer].next_position


def check(model, schedule, images, ids=None):
    schedule = plan.parse(schedule, num_layers=model.config.text.num_layers)
    prompt = model.prompt(*inputs(images), per_image=plan.has_budgets_per_image(schedule))
    resolved = plan.resolve(schedule, prompt.visual_slots.shape[1], images=prompt.images)
    ids = np.random.default_rng(5).integers(8, 101, (2, NEW)) if ids is None else ids
    want, rows = recompute(model, prompt, resolved, ids)
    got, prefilled = ours(model, prompt, schedule, ids)
    for number, record in enumerate(prefilled.cuts):
        for row, one in enumerate(rows):
            indices, valid = one.records[number]  # which padding stands for missing ones is nobody's business
            np.testing.assert_array_equal(np.asarray(record.indices[row])[valid], indices[valid])
    check_positions(prefilled, rows)
    np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max() / 10))
    return prefilled, want


@pytest.fixture(scope="module")
def model():
    return make_llava(num_layers=LAYERS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_decoding_goes_on_as_if_nothing_were_cached(model, name):
    images, schedule = SCHEDULES[name]
    check(model, schedule, images)


@pytest.mark.parametrize("name", ["input-layer", "tower-layer"])
def test_a_tower_that_ran_before_is_not_run_again(model, name):
    """With evidence from it, and with a cut in it."""
    images, schedule = SCHEDULES[name]
    prompt = model.prompt(*inputs(images))
    (given, seed), how = model.arguments(prompt, schedule, 3)
    request = tower_request(model, prompt, plan=how["plan"], kernel=how["target"].kernel)
    seen = see(model, given.pixel_values, seed, request=request)
    whole = model.prefill(prompt, carve=schedule, seed=3)
    made = model.prefill(dataclasses.replace(prompt, pixel_values=seen), carve=schedule, seed=3)
    chex.assert_trees_all_close(made, whole, atol=1e-5)
    other = dataclasses.replace(seen, tokens=-seen.tokens)
    changed = model.prefill(dataclasses.replace(prompt, pixel_values=other), carve=schedule, seed=3)
    assert np.abs(changed.logits - whole.logits).max() > 1e-2


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_schedules_answer_as_the_reference_does(model, name):
    """Logits and positions of every layer, the bytes that are held, and (of one) the tokens that are generated."""
    images, schedule = OFFICIAL[name]
    ids, pixels, mask = inputs(images)
    if name == "pyramiddrop":
        prefilled, _ = check(model, schedule, images)
    else:
        new = np.asarray(model.generate(ids, pixels, attention_mask=mask, max_new_tokens=NEW + 1, carve=schedule))
        prefilled, want = check(model, schedule, images, ids=new[:, :NEW])
        np.testing.assert_array_equal(new, want.argmax(-1))
    counts = {one.place: one.keep for one in schedule}
    assert len(counts) == 3
    visual, text, held = 2 * PATCHES, model.prompt(ids, pixels, mask).input_ids.shape[1] - 2 * PATCHES, 0
    for layer in range(model.config.text.num_layers):
        visual = counts.get(layer, visual)
        slots = text + visual + DECODE_CAPACITY_BUCKET
        held += 2 * len(ids) * model.config.text.num_kv_heads * slots * model.config.text.head_dim * 4  # float32
    assert prefilled.cache.nbytes == held


def test_with_a_sliding_window():
    first = cut(1, FASTV_MERGED, 13, positions="median", calibrated=True)
    then = cut(3, "tokencarve", 5, positions="renumbered", earlier="full")
    check(make_llava(sliding_window=17, num_layers=LAYERS), (first, then), ONE)


def test_early_caches_are_full_only_where_the_cut_says_so(model):
    prompt = model.prompt(*inputs((1, 1)))
    size = prompt.input_ids.shape[1]
    short = size - PATCHES + 6
    for earlier, want in (("full", [size, size, short, short]), ("gathered", [short] * LAYERS)):
        prefilled = model.prefill(prompt, carve=(cut(2, "fastv", 6, earlier=earlier),))
        assert [key.shape[-2] for key, _ in prefilled.cache.layers] == want
