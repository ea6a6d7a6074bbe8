"""Logits and greedy tokens equal to transformers', part by part and as a whole, on tiny random checkpoints."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from models.engine.loop import Flow, run_layers
from models.llava import Llava
from tests.checkpoints import IMAGE, PATCHES, TEXT, VISION, make_llava

TOLERANCE = 1e-4
SHALLOW = {"vision": {"num_hidden_layers": 3}, "text": {"num_hidden_layers": 2}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Ours and transformers', from one folder."""
    folder = tmp_path_factory.mktemp("llava")
    theirs = make_llava(folder, shards=3, old_buffers=True)
    return Llava.from_pretrained(folder), theirs


def pixels(count, seed=0, *, size=VISION["image_size"], channels=3):
    return np.random.default_rng(seed).standard_normal((count, channels, size, size)).astype(np.float32)


def batch(images, texts, *, side, seed=0, per_image=PATCHES):
    """Rows with so many images and so many words, images at the front, inside and at the end; padded on one side."""
    rng = np.random.default_rng(seed)
    rows = []
    for row, (count, words) in enumerate(zip(images, texts, strict=True)):
        pieces = [list(rng.integers(3, 90, n)) for n in rng.multinomial(words, [1 / (count + 1)] * (count + 1))]
        pieces = pieces if row % 2 else [pieces[0] + pieces[-1], *pieces[1:-1], []] if count else pieces
        rows.append([token for piece in pieces[:-1] for token in [*piece, *[IMAGE] * per_image]] + pieces[-1])
    width = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, where], mask[row, where] = tokens, 1
    return ids, mask


def torch_logits(model, ids, mask, images):
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            pixel_values=None if images is None else torch.tensor(images),
        )
    return out.logits.numpy()


def torch_tokens(model, ids, mask, images, steps, **options):
    out = model.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        pixel_values=torch.tensor(images),
        max_new_tokens=steps,
        do_sample=False,
        **options,
    )
    return out.numpy()[:, ids.shape[1] :]


def assert_logits(ours, theirs, ids, mask, images):
    got, want = np.asarray(ours(ids, images, mask)), torch_logits(theirs, ids, mask, images)
    real = mask.astype(bool)
    assert got.shape == want.shape
    assert want[real].std() > 0.5  # logits that are all alike would prove nothing
    np.testing.assert_allclose(got[real], want[real], rtol=0, atol=TOLERANCE)


# Part by part


def test_tower(pair):
    ours, theirs = pair
    images = pixels(3)
    with torch.no_grad():
        want = theirs.model.vision_tower(torch.tensor(images), output_hidden_states=True).hidden_states
    depth = VISION["num_hidden_layers"]
    assert len(want) == depth + 1
    got = ours.vision_tower(images, feature_layers=tuple(range(depth + 1))).features
    np.testing.assert_allclose(got, torch.cat(want, dim=-1), rtol=0, atol=TOLERANCE)
    assert all((a - b).abs().max() > 0.1 for a, b in itertools.pairwise(want))


def test_projector(pair):
    ours, theirs = pair
    features = np.random.default_rng(0).standard_normal((2, 7, VISION["hidden_size"])).astype(np.float32)
    with torch.no_grad():
        want = theirs.model.multi_modal_projector(torch.tensor(features))
    np.testing.assert_allclose(ours.projector(features), want, rtol=0, atol=TOLERANCE)


def test_image_features(pair):
    """The right layer, without the class token."""
    ours, theirs = pair
    with torch.no_grad():
        want = theirs.get_image_features(torch.tensor(pixels(3))).pooler_output
    np.testing.assert_allclose(ours.image_features(pixels(3)), torch.stack(want), rtol=0, atol=TOLERANCE)


def test_decoder(pair):
    """300 tokens at positions with holes, as a carve leaves them: short prompts do not show rotary mistakes."""
    ours, theirs = pair
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((2, 300, TEXT["hidden_size"])).astype(np.float32)
    positions = np.sort(rng.permuted(np.tile(np.arange(900, dtype=np.int32), (2, 1)), axis=1)[:, :300], axis=1)
    with torch.no_grad():
        out = theirs.model.language_model(
            inputs_embeds=torch.tensor(hidden), position_ids=torch.tensor(positions).long()
        )
        want = theirs.lm_head(out.last_hidden_state)
    flow = Flow(ours.decoder, jnp.asarray(positions)[..., None], jnp.array([300, 300]))
    got = ours.decoder.logits(run_layers(ours.decoder.layers, jnp.asarray(hidden), flow))
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


# The whole

BATCHES = [
    pytest.param((1, 1, 1), (9, 30, 17), id="one image"),
    pytest.param((0, 2, 1), (40, 5, 50), id="none to two images"),
]


@pytest.mark.parametrize(("images", "texts"), BATCHES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits(pair, images, texts, side):
    assert_logits(*pair, *batch(images, texts, side=side), pixels(sum(images)))


def test_logits_without_images(pair):
    assert_logits(*pair, *batch((0, 0), (9, 50), side="left"), None)


@pytest.mark.parametrize(("images", "texts"), BATCHES)
def test_greedy_tokens(pair, images, texts):
    """Padded on the right; transformers can generate only from the left."""
    ours, theirs = pair
    ids, mask = batch(images, texts, side="right")
    got = ours.generate(ids, pixels(sum(images)), attention_mask=mask, max_new_tokens=32)
    ids, mask = batch(images, texts, side="left")
    want = torch_tokens(theirs, ids, mask, pixels(sum(images)), 32)
    assert want.shape == (3, 32)
    assert len({tuple(row) for row in want}) == 3
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)


def test_generation_ends_at_eos(tmp_path):
    """Rows end at different steps, at either of two tokens, and are padded; all end before the limit."""
    theirs = make_llava(tmp_path, **SHALLOW)
    ids, mask = batch((1, 1), (9, 30), side="left")
    free = torch_tokens(theirs, ids, mask, pixels(2), 32)
    eos = [int(free[0, 6]), int(free[1, 11])]
    make_llava(tmp_path, **SHALLOW | {"text": SHALLOW["text"] | {"eos_token_id": eos, "pad_token_id": 5}})
    want = torch_tokens(theirs, ids, mask, pixels(2), 32, eos_token_id=eos, pad_token_id=5)
    ends = [int(np.isin(row, eos).argmax()) for row in want]
    assert 0 < min(ends) < max(ends) == want.shape[1] - 1
    got = Llava.from_pretrained(tmp_path).generate(ids, pixels(2), attention_mask=mask, max_new_tokens=32)
    np.testing.assert_array_equal(got, want)


# Other configs

VARIANTS = {
    "attention_bias": {"text": {"attention_bias": True}},
    "mlp_bias": {"text": {"mlp_bias": True}},
    "tied": {"tie_word_embeddings": True, "text": {"tie_word_embeddings": True}},
    "no grouped queries": {"text": {"num_key_value_heads": 6, "head_dim": 8}},
    "linear rope": {"text": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 555.0}}},
    "decoder gelu": {"text": {"hidden_act": "gelu_pytorch_tanh"}},
    "decoder relu": {"text": {"hidden_act": "relu"}},
    "tower gelu": {"vision": {"hidden_act": "gelu"}},
    "tower gelu_new": {"vision": {"hidden_act": "gelu_new"}},
    "projector tanh gelu": {"projector_hidden_act": "gelu_pytorch_tanh"},
    "projector quick_gelu": {"projector_hidden_act": "quick_gelu"},
    "projector silu": {"projector_hidden_act": "silu"},
    "projector without bias": {"multimodal_projector_bias": False},
    "grey images": {"vision": {"num_channels": 1}},
    "embedding": {"vision_feature_layer": -4},
    "last layer": {"vision_feature_layer": -1},
    "several layers": {"vision_feature_layer": [-2, 1, 3, -4]},
    "class token": {"vision_feature_select_strategy": "full"},
    "mistral": {"text_class": transformers.MistralConfig, "text": {"sliding_window": 7}},
    "mistral without window": {"text_class": transformers.MistralConfig, "text": {"sliding_window": None}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(tmp_path, name):
    variant = {
        key: SHALLOW.get(key, {}) | value if isinstance(value, dict) else value for key, value in VARIANTS[name].items()
    }
    theirs = make_llava(tmp_path, seed=1, **SHALLOW | variant)
    ours = Llava.from_pretrained(tmp_path)
    per_image = ours.config.tokens_per_image
    assert per_image == PATCHES + (name == "class token")
    images = pixels(3, channels=ours.config.vision.num_channels)
    ids, mask = batch((1, 2), (12, 5), side="left", per_image=per_image)
    with jax.disable_jit():  # one operation at a time, so that variants share what is compiled
        assert_logits(ours, theirs, ids, mask, images)


def test_greedy_tokens_with_a_sliding_window(tmp_path):
    theirs = make_llava(tmp_path, **SHALLOW | VARIANTS["mistral"])
    ids, mask = batch((1, 2), (12, 5), side="left")
    got = Llava.from_pretrained(tmp_path).generate(ids, pixels(3), attention_mask=mask, max_new_tokens=32)
    np.testing.assert_array_equal(got, torch_tokens(theirs, ids, mask, pixels(3), 32))
