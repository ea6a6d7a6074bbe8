"""Qwen2.5-VL and Qwen3-VL carved: decoding against transformers' layers, all methods, and cuts that are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from models.engine import prefill
from models.engine.plan import Cut, resolve
from models.engine.relevance import check_tower
from models.engine.target import CPU
from models.serving import image_embeds
from tests import qwen
from tests.qwen import SQUARE, TALL, WIDE, as_torch, batch
from tokencarve_jax import COMPRESSORS

TOLERANCE = 1e-4
ONE_IMAGE = batch([7, TALL, 30])
first_family = pytest.mark.parametrize("pair", ["qwen2_5_vl"], indirect=True)  # the second runs the same code


@pytest.fixture(scope="module", params=qwen.FAMILIES)
def pair(request, tmp_path_factory):
    return qwen.pair(request.param, tmp_path_factory.mktemp(request.param))


def torch_carved(theirs, inputs, prompt, record, layer, steps):
    """Logits of one row and greedy tokens by transformers' own layers, the sequence shortened before `layer`."""
    told = {key: value for key, value in as_torch(inputs).items() if not key.startswith("pixel")}
    position, delta = theirs.model.get_rope_index(**told)
    hidden = theirs.get_input_embeddings()(told["input_ids"])
    if "pixel_values" in inputs:
        see, pixels, grid = theirs.model.get_image_features, inputs["pixel_values"], told["image_grid_thw"]
    else:
        see, pixels, grid = theirs.model.get_video_features, inputs["pixel_values_videos"], told["video_grid_thw"]
    features = see(torch.tensor(pixels), grid)
    later = [torch.cat(level) for level in getattr(features, "deepstack_features", ())]
    there = np.flatnonzero(prompt.visual_valid[0])
    slots = torch.tensor(prompt.visual_slots[0][there]).long()
    hidden[0, slots] = torch.cat(features.pooler_output)
    decoder, cache = theirs.model.language_model, transformers.DynamicCache()

    def run(layers, hidden, position, slots=None):
        at = decoder.rotary_emb(hidden, position)
        for index in layers:
            hidden = decoder.layers[index](hidden, cache=cache, position_embeddings=at)
            if slots is not None and index < len(later):
                hidden[0, slots] += later[index]
        return hidden

    count = len(decoder.layers)
    hidden = run(range(layer), hidden, position, slots)
    indices, assignment = np.searchsorted(there, record.indices[0]), np.asarray(record.assignment[0])[there]
    groups = [np.flatnonzero(assignment == row) for row in range(len(indices))]
    for index, group in zip(indices, groups, strict=True):  # whoever lives on in a survivor is in its mean
        hidden[0, slots[index]] = hidden[0, slots[group]].mean(0)
    later = [torch.stack([level[group].mean(0) for group in groups]) for level in later]
    gone = np.delete(slots.numpy(), indices)
    kept = torch.tensor(np.setdiff1d(np.arange(hidden.shape[1]), gone))
    for one in cache.layers[:layer]:
        one.keys, one.values = one.keys[:, :, kept], one.values[:, :, kept]
    standing = torch.searchsorted(kept, slots[indices])
    hidden, tokens = run(range(layer, count), hidden[:, kept], position[:, :, kept], standing), []
    first = theirs.lm_head(decoder.norm(hidden[:, -1]))
    for step in range(steps):
        tokens.append(int(theirs.lm_head(decoder.norm(hidden[:, -1])).argmax()))
        following = torch.full((3, 1, 1), inputs["input_ids"].shape[1] + int(delta) + step)
        hidden = run(range(count), theirs.get_input_embeddings()(torch.tensor([[tokens[-1]]])), following)
    return first, tokens


IMAGES, VIDEO = [12, WIDE, 5, TALL, 30], [12, (5, 8, 6), 3]
CARVES = [("divprune@input=9", IMAGES), ("fastv@2=9", VIDEO), ("tokencarve@2=9", IMAGES)]
EARLY = [("tokencarve@1=9", IMAGES), ("tokencarve@1=5,image", IMAGES)]


@pytest.mark.parametrize(
    ("pair", "carve", "media"),
    [*((family, *case) for family in qwen.FAMILIES for case in CARVES), *(("qwen3_vl", *case) for case in EARLY)],
    indirect=["pair"],
)
def test_cached_decoding_goes_on_at_the_original_positions(pair, carve, media):
    """Images, and a video; Qwen2.5-VL's last frame stands behind the text that follows it.

    Before layer 1 there is still something to add to Qwen3-VL's tokens, those that merged too.
    """
    ours, theirs = pair
    inputs = batch(media, seconds=3.3, family=ours.model_type)
    prompt = ours.prompt(**inputs, per_image="image" in carve)
    prefilled = ours.prefill(prompt, carve=carve)
    got = ours.generate(**inputs, max_new_tokens=24, carve=carve)[0].tolist()
    layer = 0 if "input" in carve else int(carve.split("@")[1][0])
    with torch.no_grad():
        logits, want = torch_carved(theirs, inputs, prompt, prefilled.cuts[0], layer, 24)
    np.testing.assert_allclose(prefilled.logits, logits, rtol=0, atol=TOLERANCE)
    assert got == want
    assert got != ours.generate(**inputs, max_new_tokens=24)[0].tolist()


@first_family
def test_images_of_many_shapes_share_a_program(pair):
    ours, _ = pair
    shapes = [TALL, (1, 12, 4), (1, 10, 6), (1, 12, 6), (1, 6, 12)]
    prompts = [ours.prompt(**batch([7, shape, 5])) for shape in shapes]
    before = prefill.prefill._cache_size()
    for prompt in prompts:
        ours.prefill(prompt, carve="fastv@2=9")
    assert prefill.prefill._cache_size() == before + 1
    for prompt in prompts[:2]:
        ours.prefill(prompt, carve="uniform@input=9")
    assert prefill.prefill._cache_size() == before + 3


METHODS = ["tokencarve", "fastv", "divprune", "visionzip", "vispruner", "pyramiddrop", "dart"]
OF_ROWS = ["uniform", "pooling", "random"]  # whose choice depends on how much room there is beside a row's tokens


@pytest.mark.parametrize("name", [*METHODS, *OF_ROWS])
def test_methods(pair, name):
    """All kept changes nothing; and a row is carved as by itself, whatever stands beside it."""
    ours, _ = pair
    place = COMPRESSORS[name].at if COMPRESSORS[name].at == "input" else 1
    rows = [[30, WIDE, 3, TALL, 4], [9, SQUARE, 2]]
    whole = ours.prompt(**batch(*rows))
    free = np.asarray(ours.prefill(whole).logits)
    np.testing.assert_array_equal(ours.prefill(whole, carve=((place, name, 1.0),)).logits, free)
    both = ours.prefill(whole, carve=((place, name, 10),))
    assert both.cuts[0].indices.shape == (2, 10)
    assert (np.abs(both.logits - free).max(1) > 0.01).all()
    if name in METHODS:
        alone = ours.prefill(ours.prompt(**batch(rows[0])), carve=((place, name, 10),))
        np.testing.assert_array_equal(alone.cuts[0].indices[0], both.cuts[0].indices[0])
        np.testing.assert_allclose(alone.logits[0], both.logits[0], rtol=0, atol=TOLERANCE)


@first_family
def test_all_methods_run_or_are_refused_by_name(pair):
    """Shapes alone: what each does is tested elsewhere."""
    ours, _ = pair
    prompt, refused = ours.prompt(**batch([12, WIDE, 5, TALL, 30])), set()
    for name, compressor in COMPRESSORS.items():
        if compressor.at == "tower":
            continue
        carve = ((2 if compressor.at == "decoder" else "input", name, 9),)
        if set(compressor.required) - ours.evidence:
            with pytest.raises(ValueError, match=f"{name} needs .*, which qwen2_5_vl models do not have"):
                ours.schedule(carve)
            refused.add(name)
            continue
        cuts = ours.schedule(carve)
        plan = resolve(cuts, prompt.visual_slots.shape[1], images=prompt.images)
        run = functools.partial(prefill.prefill, plan=plan, decode_capacity=0, target=CPU)
        out = jax.eval_shape(run, ours, prompt, jnp.uint32(0))
        assert out.cuts[0].indices.shape == (1, 9)
    assert refused == {"hiprune", "trim"}


def test_the_grid_of_images_and_videos(pair):
    ours, _ = pair
    assert ours.prompt(**batch([3, (4, 6, 4), 4], family=ours.model_type)).grid == (4, 3, 2)
    assert ours.prompt(**batch([3, TALL, 4], [2, WIDE])).grid is None


@first_family
def test_the_grid_of_an_image_reaches_the_methods(pair):
    ours, _ = pair
    prompt = ours.prompt(**batch([3, (1, 8, 20), 4]))
    assert prompt.grid == (1, 4, 10)
    left = ours.prefill(prompt, carve="uniform@input=10").cuts[0].indices[0]
    assert np.asarray(left).tolist() == [11, 13, 15, 17, 19, 31, 33, 35, 37, 39]
    each = (Cut("input", COMPRESSORS["uniform"], 2, scope="image"),)
    alike = ours.prompt(**batch([3, TALL, 4, TALL]), per_image=True)
    assert alike.grid == (1, 7, 2)
    assert ours.prefill(alike, carve=each).cuts[0].indices.shape == (1, 4)


@pytest.mark.parametrize(
    ("carve", "said"),
    [
        ("hiprune@input=9", "hiprune needs middle_attention, which {} models do not have"),
        ("tome@tower=9", "{} models cannot be cut in the tower"),
        ("uniform@tower=9", "{} models cannot be cut in the tower; cut at 'input'"),
        ("fastv@2=9,renumbered", "{} models have 3 axes and cannot be renumbered"),
    ],
)
def test_cuts_that_are_refused(pair, carve, said):
    ours, _ = pair
    with pytest.raises(ValueError, match=said.format(ours.model_type)):
        ours.generate(**ONE_IMAGE, max_new_tokens=1, carve=carve)


@pytest.mark.parametrize("pair", ["qwen3_vl"], indirect=True)
def test_embeddings_that_would_leave_something_out_are_refused(pair):
    ours, _ = pair
    with pytest.raises(ValueError, match="qwen3_vl models add to their visual tokens behind decoder layers too"):
        image_embeds(ours, **ONE_IMAGE, method="divprune", keep=4)


def test_a_clip_does_not_go_with_this_tower(pair):
    ours, _ = pair
    with pytest.raises(ValueError, match=f"{ours.model_type} models do not have relevance"):
        check_tower(ours, ours.config.vision)
