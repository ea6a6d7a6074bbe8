"""Every field of every config is read: change it, and the output changes or the checkpoint no longer fits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.auto import family_of
from models.errors import CheckpointError
from models.io.table import load_weights
from models.llava import Llava, LlavaConfig, LlavaNext, LlavaNextConfig
from models.nn.clip_config import VisionConfig
from models.nn.llama_config import TextConfig
from tests.checkpoints import IMAGE, PATCHES, VISION, abstract, build, make_llava

MISFIT = "the checkpoint does not fit"
OTHER = "other logits"
ENDS = "other tokens once a row has ended: test_parity.py"

# A value that differs from the checkpoint's, and what must come of it.
VISION_FIELDS = {
    "hidden_size": (27, MISFIT),
    "intermediate_size": (51, MISFIT),
    "num_layers": (3, MISFIT),
    "num_heads": (4, OTHER),
    "num_channels": (1, MISFIT),
    "image_size": (36, MISFIT),
    "patch_size": (5, MISFIT),
    "activation": ("gelu", OTHER),
    "layer_norm_eps": (1e-3, OTHER),
}
TEXT_FIELDS = {
    "vocab_size": (100, MISFIT),
    "hidden_size": (36, MISFIT),
    "intermediate_size": (71, MISFIT),
    "num_layers": (1, MISFIT),
    "num_heads": (4, MISFIT),
    "num_kv_heads": (3, MISFIT),
    "head_dim": (12, MISFIT),
    "activation": ("gelu", OTHER),
    "rms_norm_eps": (1e-3, OTHER),
    "rope_theta": (778.0, OTHER),
    "rope_factor": (1.01, OTHER),
    "rope_sections": ((2, 3), OTHER),
    "rope_interleaved": (True, "tests/test_rotary.py"),  # there is one axis here
    "attention_bias": (True, MISFIT),
    "output_bias": (True, MISFIT),
    "head_norms": (True, MISFIT),
    "mlp_bias": (True, MISFIT),
    "tie_word_embeddings": (True, OTHER),
    "sliding_window": (30, OTHER),
    "max_positions": (PATCHES + 19, OTHER),
}
LLAVA_FIELDS = {
    "image_token_id": (96, OTHER),
    "feature_layers": ((2,), OTHER),
    "keep_class_token": (True, OTHER),
    "projector_activation": ("gelu_pytorch_tanh", OTHER),
    "projector_bias": (False, MISFIT),
    "eos_token_ids": (None, ENDS),
    "pad_token_id": (7, ENDS),
}
NEXT_FIELDS = {"image_grid_pinpoints": ((60, 30),)}
CASES = [
    *((("vision", name), *case) for name, case in VISION_FIELDS.items()),
    *((("text", name), *case) for name, case in TEXT_FIELDS.items()),
    *(((name,), *case) for name, case in LLAVA_FIELDS.items()),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    make_llava(path, vision={"num_hidden_layers": 2}, text={"num_hidden_layers": 2})
    return path


def changed(config, path, value):
    if len(path) == 1:
        return dataclasses.replace(config, **{path[0]: value})
    inner = dataclasses.replace(getattr(config, path[0]), **{path[1]: value})
    return dataclasses.replace(config, **{path[0]: inner})


def read_config(folder):
    return family_of(folder)[1]


def load(folder, config, family=Llava):
    return load_weights(abstract(config, family=family), folder, family.table(config), dtype=jnp.float32)


def inputs():
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 90, (1, PATCHES + 20))
    ids[0, 4 : 4 + PATCHES] = IMAGE
    return ids, rng.standard_normal((1, 3, VISION["image_size"], VISION["image_size"])).astype(np.float32)


def logits(model):
    with jax.disable_jit():  # one operation at a time, so that configs share what is compiled
        return np.asarray(model(*inputs()))


@pytest.fixture(scope="module")
def baseline(folder):
    return logits(load(folder, read_config(folder)))


def test_no_field_is_left_out():
    for config, fields in ((VisionConfig, VISION_FIELDS), (TextConfig, TEXT_FIELDS), (LlavaConfig, LLAVA_FIELDS)):
        names = {field.name for field in dataclasses.fields(config)} - {"vision", "text"}
        assert names == set(fields), config
    names = {field.name for field in dataclasses.fields(LlavaNextConfig)}
    assert names == {field.name for field in dataclasses.fields(LlavaConfig)} | set(NEXT_FIELDS)


@pytest.mark.parametrize(("path", "value"), [case[:2] for case in CASES if case[2] == MISFIT])
def test_fields_that_shape_the_weights(folder, path, value):
    config = read_config(folder)
    other = changed(config, path, value)
    assert other != config
    with pytest.raises(CheckpointError):
        load(folder, other)


@pytest.mark.parametrize(("path", "value"), [case[:2] for case in CASES if case[2] == OTHER])
def test_fields_that_change_the_logits(folder, baseline, path, value):
    config = read_config(folder)
    other = changed(config, path, value)
    assert other != config
    model = load(folder, other)
    if path in {("image_token_id",), ("keep_class_token",)}:
        with pytest.raises(ValueError, match="image placeholders per row"):
            logits(model)
    elif path == ("text", "max_positions"):
        with pytest.raises(ValueError, match=f"a prompt has {PATCHES + 20} tokens.*context is {PATCHES + 19}"):
            logits(model)
    elif path == ("text", "rope_sections"):
        with pytest.raises(ValueError, match=r"2 sections of .* do not fit positions with 1 axes"):
            logits(model)
    else:
        assert np.abs(logits(model) - baseline).max() > 1e-4  # what parity with transformers would notice


def test_sections_say_which_axis_a_wavelength_goes_by(folder):
    config = read_config(folder)
    whole = np.asarray(load(folder, config).decoder.rotation(jnp.arange(6).reshape(1, 6, 1)))
    assert whole.shape == (2, 1, 6, 5)
    two = load(folder, changed(config, ("text", "rope_sections"), (2, 3))).decoder
    got = np.asarray(two.rotation(jnp.stack([jnp.arange(6), jnp.arange(6)[::-1]], axis=-1)[None]))
    np.testing.assert_array_equal(got[..., :2], whole[..., :2])
    np.testing.assert_array_equal(got[..., 2:], whole[:, :, ::-1, 2:])


def test_fields_of_next(folder):
    """Other grids bring another number of visual tokens, and the checkpoint without a newline does not fit."""
    config = read_config(folder)
    common = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    ids, pixels = np.array([[1, *[IMAGE] * (PATCHES + 5 * (10 + 1)), 2]]), np.zeros((1, 3, 3, 30, 30), np.float32)

    def prompt(pinpoints):
        config = LlavaNextConfig(**common, image_grid_pinpoints=pinpoints)
        return abstract(config, family=LlavaNext).prompt(ids, pixels, image_sizes=[(20, 40)])

    assert prompt(((30, 60),)).visual_valid.sum() == 80
    with pytest.raises(ValueError, match="image placeholders per row"):
        prompt(NEXT_FIELDS["image_grid_pinpoints"])
    config = LlavaNextConfig(**common, image_grid_pinpoints=((30, 60),))
    with pytest.raises(CheckpointError, match="missing weight image_newline"):
        load(folder, config, LlavaNext)


@pytest.mark.parametrize(("eos", "want"), [(None, ()), (5, (5,)), ([5, 6], (5, 6))])
def test_configs_of_both_generations_read_the_same(tmp_path, eos, want):
    """Files of early versions: `rope_theta`, and most fields left to the defaults of their class."""
    build(text={"eos_token_id": eos}).config.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert config.eos_token_ids == want
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    for field in ("multimodal_projector_bias", "vision_feature_select_strategy", "tie_word_embeddings", "dtype"):
        old.pop(field, None)
    old |= {"ignore_index": -100, "torch_dtype": "float16"}
    text = old["text_config"]
    text |= {"rope_theta": text.pop("rope_parameters")["rope_theta"], "_name_or_path": "lmsys/vicuna-7b-v1.5"}
    path.write_text(json.dumps(old))
    assert read_config(tmp_path) == config
    old["image_token_id"] = old.pop("image_token_index")
    path.write_text(json.dumps(old))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("generation", "want"),
    [({}, ((5,), 6)), ({"eos_token_id": [8, 9]}, ((8, 9), 6)), ({"pad_token_id": 0}, ((5,), 0))],
)
def test_generation_config_goes_first(tmp_path, generation, want):
    """Which tokens end and pad a row: `generation_config.json`, as for transformers, then `config.json`."""
    build(text={"eos_token_id": 5, "pad_token_id": 6}).config.save_pretrained(tmp_path)
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config = read_config(tmp_path)
    assert (config.eos_token_ids, config.pad_token_id) == want
