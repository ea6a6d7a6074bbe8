"""Qwen2.5-VL's checkpoints: both spellings of keys, conversion and back, the published configs, every field."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import models
from models import convert
from models.engine import prefill
from models.engine.plan import resolve
from models.engine.target import CPU
from models.engine.visual import TowerRequest
from models.errors import CheckpointError, ConfigError
from models.families.qwen2_5_vl import Qwen25VL, Qwen25VLConfig
from models.io.shards import Header
from models.io.table import load_weights, match, variables_of
from models.nn.qwen_vision import QwenVisionConfig
from tests import checkpoints, qwen
from tests.qwen import TALL, as_torch, batch

INPUTS = batch([7, TALL, 30])
MISFIT, OTHER, ELSEWHERE = "weights do not fit", "other visual tokens", "test_qwen2_5_vl.py"


def test_a_tied_checkpoint_as_transformers_spells_it_is_converted_and_written_back(tmp_path):
    theirs = qwen.make(tmp_path / "hf", memory=True, tie_word_embeddings=True)
    convert.convert(tmp_path / "hf", tmp_path / "orbax")
    convert.to_hf(tmp_path / "orbax", tmp_path / "back")
    again = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "back")
    with torch.no_grad():
        want = theirs(**as_torch(INPUTS)).logits.numpy()
        np.testing.assert_array_equal(again(**as_torch(INPUTS)).logits.numpy(), want)
    got = np.asarray(models.from_pretrained(tmp_path / "orbax")(**INPUTS))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


# What the published files say, but for fields that are defaults of transformers.
_COMMON = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
_TOWER = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}
PUBLISHED = {
    "3b": _COMMON
    | {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
    | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
    | {"vision_config": _TOWER | {"out_hidden_size": 2048}},
    "7b": _COMMON
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    | {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
    | {"vision_config": _TOWER | {"out_hidden_size": 3584}},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_is_wired(name):
    """The real config by shapes alone: every weight has its place, and a carved prompt runs through."""
    hf = transformers.Qwen2_5_VLConfig(**PUBLISHED[name])
    with torch.device("meta"):
        theirs = transformers.Qwen2_5_VLForConditionalGeneration(hf)
    config = Qwen25VL.read_config(hf, {})
    model = checkpoints.abstract(config, jnp.bfloat16, family=Qwen25VL)
    headers = {
        qwen.published(key): Header(Path(), tuple(value.shape), "BF16")
        for key, value in theirs.state_dict().items()
        if not (hf.tie_word_embeddings and key == "lm_head.weight")
    }
    planned, found = match(headers, Qwen25VL.table(config), variables_of(model))
    assert not found
    assert len(planned) == len(headers) == 12 * config.text.num_layers + 2 + (name == "7b") + 32 * 12 + 6
    grid = (1, 48, 70)  # 672 x 980 pixels
    patches = np.broadcast_to(np.float32(0), (48 * 70, 1176))
    ids = np.array([[1, *[config.image_token_id] * (24 * 35), *range(3, 40)]])
    prompt = model.prompt(ids, patches, image_grid_thw=[grid])
    assert prompt.pixel_values.inside.shape == (1, 56, 16)  # 6 x 9 windows, and two for the bucket
    assert prompt.grid == (1, 24, 35)
    plan = resolve(model.schedule(0.1), prompt.visual_slots.shape[1])
    run = functools.partial(prefill.prefill, plan=plan, decode_capacity=32, target=CPU)
    out = jax.eval_shape(run, model, prompt, jnp.uint32(0))
    kept = out.cuts[0].indices.shape[1]
    assert kept == 90  # a tenth of 840, rounded up to 896
    slots = prompt.input_ids.shape[1] - 896 + kept + 32
    assert out.cache.layers[-1][0].size == slots * config.text.num_kv_heads * 128


# A value that differs from the checkpoint's, and what must come of it.
VISION_FIELDS = {
    "hidden_size": (40, MISFIT),
    "intermediate_size": (51, MISFIT),
    "num_layers": (2, MISFIT),
    "num_heads": (4, OTHER),
    "num_channels": (4, MISFIT),
    "patch_size": (5, MISFIT),
    "temporal_patch_size": (1, MISFIT),
    "merge_size": (1, MISFIT),
    "window_units": (2, OTHER),
    "full_blocks": ((0,), OTHER),
    "activation": ("gelu", OTHER),
    "rope_theta": (98.0, OTHER),
    "out_hidden_size": (32, MISFIT),
    "tokens_per_second": (2, ELSEWHERE),
}
OUTER_FIELDS = {
    "image_token_id": (5, OTHER),
    "video_token_id": (5, ELSEWHERE),
    "eos_token_ids": (None, "tests/test_parity.py"),
    "pad_token_id": (None, "tests/test_parity.py"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen")
    qwen.make(path)
    return path


def tokens(folder, config):
    """Visual tokens of an image."""
    abstract = checkpoints.abstract(config, family=Qwen25VL)
    model = load_weights(abstract, folder, Qwen25VL.table(config), dtype=np.float32)
    prompt = model.prompt(**INPUTS)
    with jax.disable_jit():  # one operation at a time, so that configs share what is compiled
        visual = np.asarray(model.visual(prompt.pixel_values, TowerRequest()).tokens)
    return visual[prompt.feature_index[0][prompt.visual_valid[0]]]


def test_every_field_counts(folder):
    _, config = models.auto.family_of(folder)
    assert {field.name for field in dataclasses.fields(QwenVisionConfig)} == set(VISION_FIELDS)
    assert {field.name for field in dataclasses.fields(Qwen25VLConfig)} == {"vision", "text", *OUTER_FIELDS}
    baseline = tokens(folder, config)
    for name, (value, outcome) in VISION_FIELDS.items():
        other = dataclasses.replace(config, vision=dataclasses.replace(config.vision, **{name: value}))
        if outcome == MISFIT:
            with pytest.raises(CheckpointError):
                tokens(folder, other)
        elif outcome == OTHER:
            assert np.abs(tokens(folder, other) - baseline).max() > 1e-4, name
    with pytest.raises(ValueError, match="image placeholders per row"):
        tokens(folder, dataclasses.replace(config, image_token_id=5))


@pytest.mark.parametrize(
    ("part", "field", "value", "said"),
    [
        ("text_config", "use_sliding_window", True, "use_sliding_window is True; supported is false"),
        ("vision_config", "num_heads", 3, "expected to divide 32 into heads"),
        ("vision_config", "fullatt_block_indexes", [7], "expected whole numbers from 0 to 2"),
        ("vision_config", "patch_size", [6, 6], "patch_size is"),
        ("vision_config", "out_hidden_size", 63, "out_hidden_size is 63; expected 64"),
        ("vision_config", "hidden_act", "mish", "supported are"),
    ],
)
def test_configs_that_are_refused(part, field, value, said):
    hf = qwen.hf_config()
    setattr(getattr(hf, part), field, value)
    with pytest.raises(ConfigError, match=said):
        Qwen25VL.read_config(hf, {})


def test_sections_that_do_not_fit_are_refused():
    hf = qwen.hf_config()
    hf.text_config.rope_parameters["mrope_section"] = [2, 3, 2]
    with pytest.raises(ConfigError, match="expected three numbers that add up to 8"):
        Qwen25VL.read_config(hf, {})
