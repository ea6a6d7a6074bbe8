"""Qwen2.5-VL and Qwen3-VL equal to transformers in parts and as a whole, and inputs that are refused."""

import contextlib
import itertools
import re
import types

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from models.engine.visual import TowerRequest
from tests import qwen
from tests.qwen import SQUARE, TALL, WIDE, WORDS, as_torch, batch

TOLERANCE = 1e-4
OF_IMAGES = {
    "one image": batch([7, TALL, 30]),
    "unequal": batch([40, WIDE, 3, TALL, 500], [5], [2, SQUARE, 9]),
    "right": batch([4, WIDE, 3], [2, TALL, 1, SQUARE, 60], side="right"),
}
BATCHES = {
    family: OF_IMAGES
    | {"video": batch([3, (5, 8, 6), 20, TALL, 4], [9, WIDE, (2, 4, 10), 3], seconds=1.1, family=family)}
    for family in qwen.FAMILIES
}
NAMES = ("one image", "unequal", "right", "video")


@pytest.fixture(scope="module", params=qwen.FAMILIES)
def pair(request, tmp_path_factory):
    return qwen.pair(request.param, tmp_path_factory.mktemp(request.param))


@contextlib.contextmanager
def theirs_seen(theirs, block):
    """What a full block of transformers' tower attends to, by their own projections and rotation."""
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

    handle = theirs.model.visual.blocks[block].attn.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["unequal", "video"])
def test_tower_and_merger(pair, name):
    """Every frame's patches and visual tokens, whatever its size, in the order of the processor."""
    ours, theirs = pair
    inputs, full = BATCHES[ours.model_type][name], max(ours.config.vision.full_blocks)
    prompt = ours.prompt(**inputs)
    names = ("class_attention", "global_attention", "tower_keys", "tower_features")

    def see(model, frames):
        visual = model.visual(frames, TowerRequest())
        states, evidence = model.vision_tower(frames, reads=names)
        return states[-1], evidence, visual.tokens, visual.deepstack

    hidden, evidence, tokens, deepstack = jax.tree.map(np.asarray, jax.jit(see)(ours, prompt.pixel_values))
    whole = prompt.feature_index, prompt.visual_valid
    for pixels, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        if pixels not in inputs:
            continue
        with torch.no_grad(), theirs_seen(theirs, full) as seen:
            out = theirs.model.visual(torch.tensor(inputs[pixels]), grid_thw=torch.tensor(inputs[grids]))
        kind = qwen.IMAGE if grids == "image_grid_thw" else qwen.VIDEO
        ids = inputs["input_ids"][inputs["attention_mask"].astype(bool)]
        stands = np.concatenate([features[valid] for features, valid in zip(*whole, strict=True)])
        own = stands[ids[np.isin(ids, [qwen.IMAGE, qwen.VIDEO])] == kind]
        np.testing.assert_allclose(tokens[own], out.pooler_output, rtol=0, atol=TOLERANCE)
        assert np.asarray(out.pooler_output).std() > 0.5
        for later, want in zip(deepstack, getattr(out, "deepstack_features", ()), strict=True):
            np.testing.assert_allclose(later[own], want, rtol=0, atol=TOLERANCE)
        if len(own) == len(stands):  # theirs is in the same order, without holes
            inside = prompt.pixel_values.inside
            np.testing.assert_allclose(hidden[inside].reshape(-1, 32), out.last_hidden_state, rtol=0, atol=TOLERANCE)
            np.testing.assert_array_equal(evidence["tower_features"][inside], hidden[inside])
            for kind, want in zip(names[:3], (seen["received"], seen["received"], seen["keys"]), strict=True):
                np.testing.assert_allclose(evidence[kind][inside], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_positions(pair, name):
    ours, theirs = pair
    inputs = BATCHES[ours.model_type][name]
    told = {key: value for key, value in as_torch(inputs).items() if not key.startswith("pixel")}
    want, delta = theirs.model.get_rope_index(**told)
    prompt = ours.prompt(**inputs)
    for row, mask in enumerate(inputs["attention_mask"].astype(bool)):
        length = mask.sum()
        assert prompt.lengths[row] == length
        np.testing.assert_array_equal(prompt.positions[row, :length].T, want[:, row, mask])
        assert prompt.next_position[row] == delta[row] + length


@pytest.mark.parametrize("name", NAMES)
def test_logits(pair, name):
    ours, theirs = pair
    inputs = BATCHES[ours.model_type][name]
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
    inputs = BATCHES[ours.model_type][name]
    want = theirs.generate(**as_torch(inputs), max_new_tokens=64, do_sample=False).numpy()
    want = want[:, inputs["input_ids"].shape[1] :]
    assert want.shape[1] == 64
    np.testing.assert_array_equal(ours.generate(**inputs, max_new_tokens=64), want)


@pytest.mark.parametrize("pair", ["qwen3_vl"], indirect=True)
def test_a_video_stands_in_the_text_as_its_processor_writes_it(pair):
    """The layout of `batch`: of five frames, taken by twos, each pair behind its time."""
    ours, _ = pair
    writer = object.__new__(transformers.Qwen3VLProcessor)  # its constructor asks for torchvision
    writer.video_processor = types.SimpleNamespace(merge_size=qwen.MERGE, temporal_patch_size=qwen.TEMPORAL)
    writer.video_token, writer.vision_start_token, writer.vision_end_token = "V", "(", ")"
    taken = types.SimpleNamespace(fps=2.0, frames_indices=[0, 1, 2, 3, 4])
    text = writer.replace_video_token({"video_grid_thw": np.array([[3, 8, 6]]), "video_metadata": [taken]}, 0)
    assert text == "".join(f"<{time} seconds>({12 * 'V'})" for time in ("0.2", "1.2", "2.0"))
    ids = batch([(3, 8, 6)], family=ours.model_type)["input_ids"][0]
    layout = re.sub("<.*?>", "tt", text)
    assert [{WORDS + 2: "(", qwen.VIDEO: "V", WORDS + 3: ")"}.get(token, "t") for token in ids] == list(layout)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_grid_thw": np.array([[1, 14, 3]])}, "the last two multiples of 2"),
        ({"image_grid_thw": np.array([[1, 14, 6]])}, r"pixel_values has shape \(56, 216\); .* \(84, 216\)"),
        ({"image_grid_thw": None}, "image_grid_thw is None"),
        ({"input_ids": np.array([[3, qwen.IMAGE]]), "attention_mask": None}, r"holds \[1\] image placeholders"),
        ({"second_per_grid_ts": [1.0]}, "expected one of 0 videos|qwen3_vl models do not take second_per_grid_ts"),
    ],
)
def test_inputs_that_are_refused(pair, change, said):
    ours, _ = pair
    with pytest.raises((ValueError, TypeError), match=said):
        ours.prompt(**OF_IMAGES["one image"] | change)


def test_a_placeholder_that_does_not_enter_is_refused(pair):
    ours, _ = pair
    inputs = batch([7, TALL, 30])
    inputs["attention_mask"][0, 10] = 0
    with pytest.raises(ValueError, match="leaves out placeholders of an image"):
        ours.prompt(**inputs)
