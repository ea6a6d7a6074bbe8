"""Checkpoints of Qwen2.5-VL and Qwen3-VL: spellings of keys, conversion and back, published configs, every field."""

import copy
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import models
from models import convert
from models.engine import prefill
from models.engine.model import score
from models.engine.plan import resolve
from models.engine.target import CPU
from models.engine.visual import TowerRequest
from models.errors import CheckpointError, ConfigError
from models.families.qwen2_5_vl import Qwen25VL, QwenVLConfig
from models.families.qwen3_vl import Qwen3VL
from models.io.shards import Header
from models.io.table import load_weights, match, variables_of
from models.nn.qwen3_vision import Qwen3VisionConfig
from models.nn.qwen_vision import QwenVisionConfig
from tests import checkpoints, qwen
from tests.qwen import TALL, as_torch, batch

INPUTS = batch([7, TALL, 30])
MISFIT, OTHER, SAME, ELSEWHERE = "weights do not fit", "other visual tokens", "the same ones", "test_qwen_vl.py"


FAMILIES = {"qwen2_5_vl": Qwen25VL, "qwen3_vl": Qwen3VL}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_checkpoint_as_transformers_spells_it_is_converted_and_written_back(tmp_path, family):
    """With a bias on every projection of Qwen3-VL's decoder, which no published one has."""
    biased = {"attention_bias": family == "qwen3_vl"}
    theirs = qwen.make(tmp_path / "hf", family, memory=True, tie_word_embeddings=True, text_config=biased)
    convert.convert(tmp_path / "hf", tmp_path / "orbax")
    convert.to_hf(tmp_path / "orbax", tmp_path / "back")
    again = qwen.FAMILIES[family][1].from_pretrained(tmp_path / "back")
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
_QWEN3 = {
    "text_config": {
        "eos_token_id": 151645,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "vocab_size": 151936,
    },
    "vision_config": {"hidden_act": "gelu_pytorch_tanh", "model_type": "qwen3_vl", "num_position_embeddings": 2304},
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
    "qwen3-8b": {
        "text_config": _QWEN3["text_config"] | {"hidden_size": 4096, "intermediate_size": 12288},
        "vision_config": _QWEN3["vision_config"]
        | {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096}
        | {"deepstack_visual_indexes": [8, 16, 24]},
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_is_wired(name):
    """The real config by shapes alone: every weight has its place, and a carved prompt runs through."""
    third = name.startswith("qwen3")
    family, (read, build) = list(FAMILIES.values())[third], list(qwen.FAMILIES.values())[third]
    hf = read(**copy.deepcopy(PUBLISHED[name]))
    with torch.device("meta"):
        theirs = build(hf)
    config = family.read_config(hf, {})
    model = checkpoints.abstract(config, jnp.bfloat16, family=family)
    headers = {
        qwen.published(key, family.model_type): Header(Path(), tuple(value.shape), "BF16")
        for key, value in theirs.state_dict().items()
        if not (hf.tie_word_embeddings and key == "lm_head.weight")
    }
    planned, found = match(headers, family.table(config), variables_of(model))
    assert not found
    assert len(planned) == len(headers)
    # Per layer a bias on three projections, or two norms; three mergers more, patches with a bias and with positions.
    of_text = (11 if third else 12) * config.text.num_layers + 2 + (not hf.tie_word_embeddings)
    assert len(headers) == of_text + config.vision.num_layers * 12 + (3 + 4 * 6 if third else 6)
    grid = (1, 48, 70)  # 672 x 980 pixels, or 768 x 1120
    patches = np.broadcast_to(np.float32(0), (48 * 70, config.vision.patch_width))
    ids = np.array([[1, *[config.image_token_id] * (24 * 35), *range(3, 40)]])
    prompt = model.prompt(ids, patches, image_grid_thw=[grid])
    # Units by themselves, or 6 x 9 windows and two for the bucket.
    assert prompt.pixel_values.inside.shape == ((1, 896, 1) if third else (1, 56, 16))
    assert prompt.grid == (1, 24, 35)
    plan = resolve(model.schedule(0.1), prompt.visual_slots.shape[1])
    run = functools.partial(prefill.prefill, plan=plan, decode_capacity=32, target=CPU)
    out = jax.eval_shape(run, model, prompt, jnp.uint32(0))
    kept = out.cuts[0].indices.shape[1]
    assert kept == 90  # a tenth of 840, rounded up to 896
    slots = prompt.input_ids.shape[1] - 896 + kept + 32
    assert out.cache.layers[-1][0].size == slots * config.text.num_kv_heads * 128
    if third:
        whole = jax.eval_shape(functools.partial(score, target=CPU), model, prompt)
        assert whole.shape == (1, prompt.input_ids.shape[1], config.text.vocab_size)


# A value that differs from the checkpoint's, and what must come of it.
COMMON_FIELDS = {
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
    "activation": ("relu", OTHER),
    "rope_theta": (98.0, OTHER),
    "out_hidden_size": (32, MISFIT),
}
VISION_FIELDS = {
    "qwen2_5_vl": COMMON_FIELDS | {"tokens_per_second": (2, ELSEWHERE)},
    "qwen3_vl": COMMON_FIELDS
    | {
        "window_units": (2, SAME),  # of blocks that see whole frames; the reader gives a constant
        "position_side": (6, MISFIT),
        "deepstack_blocks": ((0, 1), OTHER),
    },
}
CONFIGS = {"qwen2_5_vl": QwenVisionConfig, "qwen3_vl": Qwen3VisionConfig}
OUTER_FIELDS = {
    "image_token_id": (5, OTHER),
    "video_token_id": (5, ELSEWHERE),
    "eos_token_ids": (None, "tests/test_parity.py"),
    "pad_token_id": (None, "tests/test_parity.py"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    qwen.make(path, request.param)
    return path


def tokens(folder, family, config):
    """Visual tokens of an image, and what is added to them in the decoder."""
    abstract = checkpoints.abstract(config, family=family)
    model = load_weights(abstract, folder, family.table(config), dtype=np.float32)
    prompt = model.prompt(**INPUTS)
    with jax.disable_jit():  # one operation at a time, so that configs share what is compiled
        visual = model.visual(prompt.pixel_values, TowerRequest())
    whole = np.stack([visual.tokens, *visual.deepstack])
    return whole[:, prompt.feature_index[0][prompt.visual_valid[0]]]


def test_every_field_counts(folder):
    family, config = models.auto.family_of(folder)
    fields, found = VISION_FIELDS[family.model_type], CONFIGS[family.model_type]
    assert {field.name for field in dataclasses.fields(found)} == set(fields)
    assert {field.name for field in dataclasses.fields(QwenVLConfig)} == {"vision", "text", *OUTER_FIELDS}
    baseline = tokens(folder, family, config)
    for name, (value, outcome) in fields.items():
        other = dataclasses.replace(config, vision=dataclasses.replace(config.vision, **{name: value}))
        if outcome == MISFIT:
            with pytest.raises(CheckpointError):
                tokens(folder, family, other)
        elif outcome in (OTHER, SAME):
            apart = np.abs(tokens(folder, family, other) - baseline).max()
            assert apart > 1e-4 if outcome == OTHER else apart < 1e-4, name
    with pytest.raises(ValueError, match="image placeholders per row"):
        tokens(folder, family, dataclasses.replace(config, image_token_id=5))


@pytest.mark.parametrize(
    ("family", "part", "field", "value", "said"),
    [
        ("qwen2_5_vl", "text_config", "use_sliding_window", True, "use_sliding_window is True; supported is false"),
        ("qwen2_5_vl", "vision_config", "num_heads", 3, "expected to divide 32 into heads"),
        ("qwen2_5_vl", "vision_config", "fullatt_block_indexes", [7], "expected whole numbers from 0 to 2"),
        ("qwen2_5_vl", "vision_config", "patch_size", [6, 6], "patch_size is"),
        ("qwen2_5_vl", "vision_config", "out_hidden_size", 63, "out_hidden_size is 63; expected 64"),
        ("qwen2_5_vl", "vision_config", "hidden_act", "mish", "supported are"),
        ("qwen3_vl", "vision_config", "num_heads", 3, "expected to divide 32 into heads"),
        ("qwen3_vl", "vision_config", "num_position_embeddings", 48, "is 48; expected a square number"),
        ("qwen3_vl", "vision_config", "deepstack_visual_indexes", [2, 0], "expected each block once, ascending"),
        ("qwen3_vl", "vision_config", "deepstack_visual_indexes", [0, 3], "expected whole numbers from 0 to 2"),
        ("qwen3_vl", "vision_config", "deepstack_visual_indexes", [0, 1, 2], "expected fewer than the 3 layers"),
    ],
)
def test_configs_that_are_refused(family, part, field, value, said):
    hf = qwen.hf_config(family)
    setattr(getattr(hf, part), field, value)
    with pytest.raises(ConfigError, match=said):
        FAMILIES[family].read_config(hf, {})


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("qwen2_5_vl", {"mrope_section": [2, 3, 2]}, "expected three numbers that add up to 8"),
        ("qwen2_5_vl", {"mrope_interleaved": True}, "mrope_interleaved is True; supported is false"),
        ("qwen3_vl", {"mrope_interleaved": False}, "mrope_interleaved is False; supported is true"),
        ("qwen3_vl", {"mrope_section": [3, 4, 3]}, "three axes cannot take turns so over 10 wavelengths"),
    ],
)
def test_sections_that_do_not_fit_are_refused(family, change, said):
    hf = qwen.hf_config(family)
    hf.text_config.rope_parameters |= change
    with pytest.raises(ConfigError, match=said):
        FAMILIES[family].read_config(hf, {})
