"""Qwen2.5-VL equal to transformers part by part and as a whole, carved decoding, and what is refused."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

import models
from models.engine import prefill
from models.engine.plan import Cut, resolve
from models.engine.relevance import check_tower
from models.engine.target import CPU
from tests import qwen
from tests.qwen import SQUARE, TALL, WIDE, as_torch, batch
from tokencarve_jax import COMPRESSORS

TOLERANCE = 1e-4
BATCHES = {
    "one image": batch([7, TALL, 30]),
    "unequal": batch([40, WIDE, 3, TALL, 500], [5], [2, SQUARE, 9]),
    "right": batch([4, WIDE, 3], [2, TALL, 1, SQUARE, 60], side="right"),
    "video": batch([3, (5, 8, 6), 20, TALL, 4], [9, WIDE, (2, 4, 10), 3], seconds=1.1),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Ours and transformers', from one folder."""
    folder = tmp_path_factory.mktemp("qwen")
    theirs = qwen.make(folder)
    return models.from_pretrained(folder), theirs


@contextlib.contextmanager
def theirs_seen(theirs):
    """What the last full block of transformers' tower attends to, by their own projections and rotation."""
    seen = {}

    def look(attention, args, given):
        states = args[0] if args else given["hidden_states"]
        query, key, _ = attention.qkv(states).reshape(len(states), 3, attention.num_heads, -1).permute(1, 0, 2, 3)
        query, key = apply_rotary_pos_emb_vision(query, key, *given["position_embeddings"])
        ends = given["cu_seqlens"].tolist()
        received = [
            torch.einsum("qhd,khd->hqk", query[a:b], key[a:b]).div(query.shape[-1] ** 0.5).softmax(-1).sum(1).mean(0)
            for a, b in itertools.pairwise(ends)
        ]
        seen["received"] = torch.cat(received).reshape(-1, 4).mean(1)
        seen["keys"] = key.mean(1).reshape(-1, 4, key.shape[-1]).mean(1)

    handle = theirs.model.visual.blocks[1].attn.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["unequal", "video"])
def test_tower_and_merger(pair, name):
    """Every frame's patches and visual tokens, whatever its size, in the order of the processor."""
    ours, theirs = pair
    inputs = BATCHES[name]
    prompt = ours.prompt(**inputs)
    names = ("class_attention", "global_attention", "tower_keys", "tower_features")
    tower = jax.jit(lambda model, frames: model.vision_tower(frames, reads=names))
    hidden, evidence = jax.tree.map(np.asarray, tower(ours, prompt.pixel_values))
    tokens = np.asarray(ours.projector(hidden.reshape(*hidden.shape[:3], -1))).reshape(-1, 64)
    whole = prompt.feature_index, prompt.visual_valid
    for pixels, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        if pixels not in inputs:
            continue
        with torch.no_grad(), theirs_seen(theirs) as seen:
            out = theirs.model.visual(torch.tensor(inputs[pixels]), grid_thw=torch.tensor(inputs[grids]))
        kind = qwen.IMAGE if grids == "image_grid_thw" else qwen.VIDEO
        ids = inputs["input_ids"][inputs["attention_mask"].astype(bool)]
        stands = np.concatenate([features[valid] for features, valid in zip(*whole, strict=True)])
        own = stands[ids[np.isin(ids, [qwen.IMAGE, qwen.VIDEO])] == kind]
        np.testing.assert_allclose(tokens[own], out.pooler_output, rtol=0, atol=TOLERANCE)
        assert np.asarray(out.pooler_output).std() > 0.5
        if len(own) == len(stands):  # theirs is by windows too, without holes
            inside = prompt.pixel_values.inside
            np.testing.assert_allclose(hidden[inside].reshape(-1, 32), out.last_hidden_state, rtol=0, atol=TOLERANCE)
            np.testing.assert_array_equal(evidence["tower_features"][inside], hidden[inside].reshape(-1, 128))
            for kind, want in zip(names[:3], (seen["received"], seen["received"], seen["keys"]), strict=True):
                np.testing.assert_allclose(evidence[kind][inside], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BATCHES)
def test_positions(pair, name):
    ours, theirs = pair
    inputs = BATCHES[name]
    told = {key: value for key, value in as_torch(inputs).items() if not key.startswith("pixel")}
    want, delta = theirs.model.get_rope_index(**told)
    prompt = ours.prompt(**inputs)
    for row, mask in enumerate(inputs["attention_mask"].astype(bool)):
        length = mask.sum()
        assert prompt.lengths[row] == length
        np.testing.assert_array_equal(prompt.positions[row, :length].T, want[:, row, mask])
        assert prompt.next_position[row] == delta[row] + length


@pytest.mark.parametrize("name", BATCHES)
def test_logits(pair, name):
    ours, theirs = pair
    inputs = BATCHES[name]
    with torch.no_grad():
        want = theirs(**as_torch(inputs)).logits.numpy()
    got, real = np.asarray(ours(**inputs)), inputs["attention_mask"].astype(bool)
    assert want[real].std() > 0.5
    np.testing.assert_allclose(got[real], want[real], rtol=0, atol=TOLERANCE)


def test_logits_without_images(pair):
    ours, theirs = pair
    inputs = batch([9], [50])
    with torch.no_grad():
        want = theirs(**as_torch(inputs)).logits.numpy()
    real = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(np.asarray(ours(**inputs))[real], want[real], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["unequal", "video"])
def test_greedy_tokens(pair, name):
    ours, theirs = pair
    inputs = BATCHES[name]
    want = theirs.generate(**as_torch(inputs), max_new_tokens=64, do_sample=False).numpy()
    want = want[:, inputs["input_ids"].shape[1] :]
    assert want.shape[1] == 64
    np.testing.assert_array_equal(ours.generate(**inputs, max_new_tokens=64), want)


# Carved


def torch_carved(theirs, inputs, prompt, record, layer, steps):
    """Greedy tokens of one row by transformers' own layers, the sequence shortened at the entry of `layer`."""
    told = {key: value for key, value in as_torch(inputs).items() if not key.startswith("pixel")}
    position, delta = theirs.model.get_rope_index(**told)
    hidden = theirs.get_input_embeddings()(told["input_ids"])
    if "pixel_values" in inputs:
        see, pixels, grid = theirs.model.get_image_features, inputs["pixel_values"], told["image_grid_thw"]
    else:
        see, pixels, grid = theirs.model.get_video_features, inputs["pixel_values_videos"], told["video_grid_thw"]
    features = see(torch.tensor(pixels), grid).pooler_output
    slots = torch.tensor(prompt.visual_slots[0][prompt.visual_valid[0]]).long()
    hidden[0, slots] = torch.cat(features)
    decoder, cache = theirs.model.language_model, transformers.DynamicCache()

    def run(layers, hidden, position):
        at = decoder.rotary_emb(hidden, position)
        for one in layers:
            hidden = one(hidden, cache=cache, position_embeddings=at)
        return hidden

    hidden = run(decoder.layers[:layer], hidden, position)
    indices, assignment = (np.asarray(part[0]) for part in (record.indices, record.assignment))
    for row, index in enumerate(indices):  # whoever lives on in a survivor is in its mean
        hidden[0, slots[index]] = hidden[0, slots[np.flatnonzero(assignment[: len(slots)] == row)]].mean(0)
    gone = np.delete(slots.numpy(), indices)
    kept = torch.tensor(np.setdiff1d(np.arange(hidden.shape[1]), gone))
    for one in cache.layers[:layer]:
        one.keys, one.values = one.keys[:, :, kept], one.values[:, :, kept]
    hidden, tokens = run(decoder.layers[layer:], hidden[:, kept], position[:, :, kept]), []
    for step in range(steps):
        tokens.append(int(theirs.lm_head(decoder.norm(hidden[:, -1])).argmax()))
        following = torch.full((3, 1, 1), inputs["input_ids"].shape[1] + int(delta) + step)
        hidden = run(decoder.layers, theirs.get_input_embeddings()(torch.tensor([[tokens[-1]]])), following)
    return tokens


@pytest.mark.parametrize(
    ("carve", "media"),
    [
        ("divprune@input=9", [12, WIDE, 5, TALL, 30]),
        ("fastv@2=9", [12, (5, 8, 6), 3]),
        ("tokencarve@2=9", [12, WIDE, 5, TALL, 30]),
    ],
)
def test_cached_decoding_goes_on_at_the_original_positions(pair, carve, media):
    """Images, and a video whose last frame stands behind the text that follows it."""
    ours, theirs = pair
    inputs = batch(media, seconds=3.3)
    prompt = ours.prompt(**inputs)
    record = ours.prefill(prompt, carve=carve).cuts[0]
    got = ours.generate(**inputs, max_new_tokens=24, carve=carve)[0].tolist()
    layer = 0 if "input" in carve else 2
    with torch.no_grad():
        want = torch_carved(theirs, inputs, prompt, record, layer, 24)
    assert got == want
    assert got != ours.generate(**inputs, max_new_tokens=24)[0].tolist()


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


METHODS = ["tokencarve", "fastv", "divprune", "visionzip", "vispruner", "uniform", "pooling", "random"]


@pytest.mark.parametrize("name", METHODS)
def test_methods(pair, name):
    """All kept changes nothing; and a row is answered as by itself, whatever stands beside it."""
    ours, _ = pair
    place = COMPRESSORS[name].at if COMPRESSORS[name].at == "input" else 2
    rows = [[30, WIDE, 3, TALL, 4], [9, SQUARE, 2]]
    inputs, alone = batch(*rows), batch(rows[0])
    free = ours.generate(**inputs, max_new_tokens=8)
    np.testing.assert_array_equal(ours.generate(**inputs, max_new_tokens=8, carve=((place, name, 1.0),)), free)
    both = ours.generate(**inputs, max_new_tokens=8, carve=((place, name, 10),))
    assert (np.asarray(both) != np.asarray(free)).any()
    if name in METHODS[:5]:
        np.testing.assert_array_equal(ours.generate(**alone, max_new_tokens=8, carve=((place, name, 10),))[0], both[0])


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


def test_the_grid_of_an_image_reaches_the_methods(pair):
    ours, _ = pair
    prompt = ours.prompt(**batch([3, (1, 8, 20), 4]))
    assert prompt.grid == (1, 4, 10)
    assert ours.prompt(**batch([3, (4, 6, 4), 4])).grid == (4, 3, 2)
    assert ours.prompt(**batch([3, TALL, 4], [2, WIDE])).grid is None
    left = ours.prefill(prompt, carve="uniform@input=10").cuts[0].indices[0]
    assert np.asarray(left).tolist() == [11, 13, 15, 17, 19, 31, 33, 35, 37, 39]
    each = (Cut("input", COMPRESSORS["uniform"], 2, scope="image"),)
    alike = ours.prompt(**batch([3, TALL, 4, TALL]), per_image=True)
    assert alike.grid == (1, 7, 2)
    assert ours.prefill(alike, carve=each).cuts[0].indices.shape == (1, 4)


@pytest.mark.parametrize(
    ("carve", "said"),
    [
        ("hiprune@input=9", "hiprune needs middle_attention, which qwen2_5_vl models do not have"),
        ("tome@tower=9", "qwen2_5_vl models cannot be cut in the tower"),
        ("uniform@tower=9", "qwen2_5_vl models cannot be cut in the tower; cut at 'input'"),
        ("fastv@2=9,renumbered", "qwen2_5_vl models have 3 axes and cannot be renumbered"),
    ],
)
def test_cuts_that_are_refused(pair, carve, said):
    ours, _ = pair
    with pytest.raises(ValueError, match=said):
        ours.generate(**BATCHES["one image"], max_new_tokens=1, carve=carve)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_grid_thw": np.array([[1, 14, 3]])}, "the last two multiples of 2"),
        ({"image_grid_thw": np.array([[1, 14, 6]])}, r"pixel_values has shape \(56, 216\); .* \(84, 216\)"),
        ({"image_grid_thw": None}, "image_grid_thw is None"),
        ({"input_ids": np.array([[3, qwen.IMAGE]]), "attention_mask": None}, r"holds \[1\] image placeholders"),
        ({"second_per_grid_ts": [1.0]}, "expected one of 0 videos"),
    ],
)
def test_inputs_that_are_refused(pair, change, said):
    ours, _ = pair
    with pytest.raises(ValueError, match=said):
        ours.prompt(**BATCHES["one image"] | change)


def test_a_placeholder_that_does_not_enter_is_refused(pair):
    ours, _ = pair
    inputs = batch([7, TALL, 30])
    inputs["attention_mask"][0, 10] = 0
    with pytest.raises(ValueError, match="leaves out placeholders of an image"):
        ours.prompt(**inputs)


def test_a_clip_does_not_go_with_this_tower(pair):
    ours, _ = pair
    with pytest.raises(ValueError, match="qwen2_5_vl models do not have relevance"):
        check_tower(ours, ours.config.vision)
