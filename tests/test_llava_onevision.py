"""LLaVA-OneVision equal to transformers part by part and as a whole, carved decoding, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

import models
from models.engine import prefill
from models.engine.decode import decode_step
from models.engine.plan import resolve
from models.engine.relevance import check_tower
from models.engine.target import CPU
from models.engine.visual import TowerRequest
from models.families.onevision_media import tokens_of_image, tokens_of_video
from tests import families
from tests.families import ODD_SIDE, batch
from tests.recomputed import recompute
from tests.test_families import as_torch
from tokencarve_jax import COMPRESSORS

TOLERANCE = 1e-4
NAME = "llava-onevision-qwen2-7b"
HF = families.narrow(NAME)
LITTLE = [
    Image.fromarray(np.random.default_rng(i).integers(0, 256, size, np.uint8))
    for i, size in enumerate([(60, 140, 3), (150, 71, 3), (70, 140, 3)])
]  # two tiles each, and so few patches that their grids are as they are
BATCHES = {
    "one image": batch(HF, (1,), (7,)),
    "little": batch(HF, (1, 1), (7, 30), photos=LITTLE),
    "video": batch(HF, (0, 1, 2), (5, 8, 30), frames=(5, 0, 5)),
    "few tiles": batch(HF, (1, 0), (7, 9), frames=(0, 2), photos=LITTLE),
    "words": batch(HF, (0, 0), (9, 30)),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Ours and transformers', from one folder."""
    path = tmp_path_factory.mktemp("onevision")
    theirs = families.make(NAME, path)
    return models.from_pretrained(path), theirs


def weighed(rows, features, weights):
    return np.einsum("nk,nk...->n...", weights, rows[features])


def test_tower_and_projector(pair):
    """Of every tile; what comes out is the last layer's, before the norm behind it."""
    ours, theirs = pair
    tiles = ours.prompt(**BATCHES["video"]).pixel_values
    depth, names = ours.config.vision.num_layers, ("global_attention", "tower_keys")

    @jax.jit
    def tower(model, pixels):
        read = [(name, 1) for name in names]
        out = model.vision_tower(pixels, feature_layers=ours.config.feature_layers, reads=read)
        return {"features": out.features} | {name: out.evidence[name, 1] for name in names}

    out = jax.tree.map(np.asarray, tower(ours, tiles.pixels))
    vision, block = theirs.model.vision_tower, theirs.model.vision_tower.encoder.layers[1]
    with torch.no_grad():
        seen = vision(torch.tensor(tiles.pixels), output_hidden_states=True)
        normed, heads = block.layer_norm1(seen.hidden_states[1]), vision.config.num_attention_heads
        query, key = (
            part(normed).unflatten(-1, (heads, -1)) for part in (block.self_attn.q_proj, block.self_attn.k_proj)
        )
        attention = torch.einsum("bqhd,bkhd->bhqk", query, key).div(query.shape[-1] ** 0.5).softmax(-1)
        tokens = theirs.model.multi_modal_projector(seen.hidden_states[-1]).numpy()
    assert len(seen.hidden_states) == depth + 1
    np.testing.assert_allclose(out["features"], seen.hidden_states[-1], rtol=0, atol=TOLERANCE)
    assert np.abs(out["features"] - seen.last_hidden_state.numpy()).max() > 0.1
    np.testing.assert_allclose(out["tower_keys"], key.mean(2), rtol=0, atol=TOLERANCE)
    received = attention.mean((1, 2)).numpy()
    np.testing.assert_allclose(out["global_attention"], received, rtol=1e-4, atol=1e-6)

    layer = 1 - depth  # block 1, counted from the end
    asked = (("class_attention", layer), ("tower_features", layer), ("tower_keys", layer))
    visual = jax.tree.map(np.asarray, dataclasses.asdict(ours.visual(tiles, TowerRequest(asked))))
    newline = np.asarray(ours.image_newline[...])
    for got, rows, last in (
        (visual["tokens"], tokens, newline),
        (visual["evidence"]["class_attention", layer], received, 0),
        (visual["evidence"]["tower_keys", layer], key.mean(2).numpy(), 0),
        (visual["evidence"]["tower_features", layer], seen.hidden_states[-1].numpy(), 0),
    ):
        rows = rows.reshape(-1, *rows.shape[2:])
        rows = np.concatenate([rows, np.broadcast_to(last, (1, *rows.shape[1:]))])
        np.testing.assert_allclose(got, weighed(rows, tiles.features, tiles.weights), rtol=0, atol=TOLERANCE)


@functools.cache
def packer(pinpoints, tile, patch):
    """transformers' packing, and a feature of each patch of the largest grid."""
    vision = transformers.SiglipVisionConfig(image_size=tile, patch_size=patch)
    model = LlavaOnevisionModel.__new__(LlavaOnevisionModel)
    torch.nn.Module.__init__(model)
    grids = [list(pair) for pair in pinpoints]
    model.config = transformers.LlavaOnevisionConfig(vision_config=vision, image_grid_pinpoints=grids)
    return model, torch.randn((37, (tile // patch) ** 2, 2), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("tile", "patch", "most"), [(384, 14, 9), (75, 14, 1), (75, 14, 2), (48, 8, 3)])
def test_images_are_packed_alike(tile, patch, most):
    pinpoints = tuple((tile * rows, tile * columns) for rows in range(1, 7) for columns in range(1, 7))
    model, features = packer(pinpoints, tile, patch)
    rows, newline = features.reshape(-1, 2), torch.tensor([[5.0, 7.0]])
    rows = torch.cat([rows, newline]).numpy()  # -1 is the last
    rng, shrunk = np.random.default_rng(0), set()
    sizes = [
        (1, 1),
        (1, 999),
        (999, 1),
        (tile, tile),
        (1000, 999),
        *map(tuple, rng.integers(1, 2500, (25, 2)).tolist()),
    ]
    sizes += map(tuple, rng.integers(1, 3 * tile, (10, 2)).tolist())
    for size in sizes:
        tiles = 1 + np.prod(
            np.array(transformers.image_processing_utils.select_best_resolution(size, pinpoints)) // tile
        )
        (want,), _ = model.pack_image_features([features[:tiles]], [size], newline[0], f"anyres_max_{most}")
        mix = tokens_of_image(size, pinpoints, tile=tile, patches=tile // patch, max_tiles=most)
        np.testing.assert_allclose(weighed(rows, *mix), want, rtol=0, atol=5e-5, err_msg=str(size))  # places in float32
        shrunk.add(bool((mix[1] % 1).any()))
    assert shrunk == {True, False}
    features, weights = tokens_of_image((tile, tile), pinpoints, tile=tile, patches=tile // patch, max_tiles=most)
    assert (features == features[:, :1]).all()  # as it is: what stands beside a patch has no influence
    assert (weights == [1, 0, 0, 0]).all()


@pytest.mark.parametrize(("tile", "patch", "tokens"), [(384, 14, 14 * 14), (75, 14, 9), (48, 8, 9)])
def test_videos_are_packed_alike(tile, patch, tokens):
    model, features = packer(((tile, tile),), tile, patch)
    want = model.apply_pooling(features[:3]).reshape(-1, 2).numpy()
    mix = tokens_of_video(3, tile // patch)
    got = weighed(np.concatenate([features.reshape(-1, 2), [[5, 7]]]), *mix)
    np.testing.assert_allclose(got, [*want, [5, 7]], rtol=0, atol=1e-5)
    assert len(got) == 3 * tokens + 1


@pytest.mark.parametrize("name", BATCHES)
def test_logits(pair, name):
    ours, theirs = pair
    inputs = BATCHES[name]
    with torch.no_grad():
        want = theirs(**as_torch(inputs)).logits.numpy()
    got, real = np.asarray(ours(**inputs)), inputs["attention_mask"].astype(bool)
    assert want[real].std() > 0.5
    np.testing.assert_allclose(got[real], want[real], rtol=0, atol=TOLERANCE)


def test_greedy_tokens(pair):
    """Of a video, of an image in tiles, and of two images with a video."""
    ours, theirs = pair
    inputs = BATCHES["video"]
    want = theirs.generate(**as_torch(inputs), max_new_tokens=64, do_sample=False).numpy()
    want = want[:, inputs["input_ids"].shape[1] :]
    assert want.shape[1] == 64
    np.testing.assert_array_equal(ours.generate(**inputs, max_new_tokens=64), want)


# Carved


def test_cached_decoding_equals_a_forward_over_what_is_left(pair):
    """Of an image in tiles and of a video, which has fewer visual tokens than the first cut leaves."""
    ours, _ = pair
    carve = "visionzip@input=40 fastv@1=30,full tokencarve@2=9"
    prompt, ids = ours.prompt(**BATCHES["few tiles"]), np.random.default_rng(0).integers(3, 2000, (2, 4))
    plan = resolve(ours.schedule(carve), prompt.visual_slots.shape[1], images=prompt.images)
    want, rows = recompute(ours, prompt, plan, ids)
    state = ours.prefill(prompt, carve=carve, decode_capacity=32)
    got, cache, step = [state.logits], state.cache, jax.jit(decode_step)
    for column in ids.T:
        logits, cache = step(ours, cache, jnp.asarray(column, jnp.int32))
        got.append(logits)
    np.testing.assert_allclose(np.stack(got, 1), want, rtol=0, atol=TOLERANCE)
    for number, row in enumerate(rows):
        for record, (indices, _) in zip(state.cuts, row.records, strict=True):
            np.testing.assert_array_equal(record.indices[number], indices)
    free = ours.prefill(prompt, carve=((2, "tokencarve", 1.0),))
    np.testing.assert_array_equal(free.logits, ours.prefill(prompt).logits)
    assert not free.cuts


METHODS = [
    "tokencarve",
    "fastv",
    "divprune",
    "visionzip",
    "vispruner",
    "pyramiddrop",
    "dart",
    "pooling",
    "uniform",
    "random",
]


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_carved_as_by_itself(pair, name):
    """Whatever stands beside it; random draws for a whole batch."""
    ours, _ = pair
    carve = (("input" if COMPRESSORS[name].at == "input" else 2, name, 10),)
    both = BATCHES["little"]
    inputs = [
        both,
        *(batch(HF, (1,), (length,), photos=[photo]) for length, photo in zip((7, 30), LITTLE[:2], strict=True)),
    ]
    for row, own in enumerate(inputs[1:]):
        own["input_ids"] = both["input_ids"][row, both["attention_mask"][row].astype(bool)][None]
    together, *alone = (ours.prefill(ours.prompt(**own, bucket=64), carve=carve) for own in inputs)
    free = ours.prefill(ours.prompt(**both, bucket=64))
    assert np.abs(together.logits - free.logits).max(1).min() > TOLERANCE
    for row, got in enumerate(alone if name != "random" else ()):
        np.testing.assert_array_equal(got.cuts[0].indices[0], together.cuts[0].indices[row])
        np.testing.assert_allclose(got.logits[0], together.logits[row], rtol=0, atol=TOLERANCE)


def test_images_of_many_shapes_share_a_program(pair):
    ours, _ = pair
    before = prefill.prefill._cache_size()
    for photo in LITTLE:
        ours.prefill(ours.prompt(**batch(HF, (1,), (9,), photos=[photo])), carve="fastv@2=9")
    assert prefill.prefill._cache_size() == before + 1


def test_the_other_methods_run_or_are_refused_by_name(pair):
    """Those that read the tower by their shapes, which are the family's matter; what each does is tested elsewhere."""
    ours, _ = pair
    prompt, refused = ours.prompt(**BATCHES["video"]), set()
    for name, compressor in COMPRESSORS.items():
        if name in METHODS or compressor.at == "tower":
            continue
        if set(compressor.required) - ours.evidence:
            refused.add(name)
            continue
        cuts = ours.schedule(((2 if compressor.at == "decoder" else "input", name, 9),))
        plan = resolve(cuts, prompt.visual_slots.shape[1], images=prompt.images)
        if not plan.reads():
            continue
        run = functools.partial(prefill.prefill, plan=plan, decode_capacity=0, target=CPU)
        assert jax.eval_shape(run, ours, prompt, jnp.uint32(0)).cuts[0].indices.shape == (3, 9)
    assert refused == {"trim"}


@pytest.mark.parametrize("carve", ["tome@tower=9", "uniform@tower=9"])
def test_cuts_that_are_refused(pair, carve):
    with pytest.raises(ValueError, match="llava_onevision models cannot be cut in the tower; cut at 'input'"):
        pair[0].generate(**BATCHES["one image"], max_new_tokens=1, carve=carve)


def test_a_clip_does_not_go_with_this_tower(pair):
    with pytest.raises(ValueError, match="trim needs relevance_dot, which llava_onevision models do not have"):
        pair[0].schedule((("input", "trim", 3),))
    with pytest.raises(ValueError, match="llava_onevision models do not have relevance"):
        check_tower(pair[0], pair[0].config.vision)


# What is given


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_sizes": None}, r"image_sizes \(\); expected \[images, tiles, channels, height, width\]"),
        ({"image_sizes": np.array([[0, 4]])}, "expected heights and widths in pixels"),
        ({"batch_num_images": np.array([2])}, r"batch_num_images is \[2\]; expected counts of 1 images in all"),
        ({"batch_num_images": np.array([-1, 2])}, r"batch_num_images is \[-1, 2\]"),
        ({"pixel_values": np.zeros((1, 2, 3, ODD_SIDE, ODD_SIDE))}, "holds 2 tiles per image; images of these sizes"),
        ({"pixel_values": np.zeros((1, 37, 3, 70, 70))}, r"the tower takes images of \(3, 75, 75\)"),
        ({"pixel_values_videos": np.zeros((1, 0, 3, ODD_SIDE, ODD_SIDE))}, "and a frame at least"),
        ({"pixel_values_videos": np.zeros((1, 2, 3, 70, 70))}, "pixel_values_videos has shape"),
        ({"pixel_values_videos": np.zeros((1, 2, 3, ODD_SIDE, ODD_SIDE))}, "input_ids holds .* image placeholders"),
        ({"input_ids": np.array([[3, 2000]]), "attention_mask": None}, r"holds \[1\] image placeholders"),
    ],
)
def test_inputs_that_are_refused(pair, change, said):
    with pytest.raises(ValueError, match=said):
        pair[0].prompt(**BATCHES["one image"] | change)
    with pytest.raises(TypeError, match="llava_onevision models do not take image_grid_thw"):
        pair[0].prompt(**BATCHES["one image"], image_grid_thw=[1])
