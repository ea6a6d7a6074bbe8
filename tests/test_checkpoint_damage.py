"""Checkpoints that are damaged, or not what config.json describes: one clear line with everything, and no model."""

import functools
import json
import re

import jax.numpy as jnp
import pytest
import torch

from models.errors import CheckpointError, ConfigError
from models.io import table
from tests.checkpoints import Q_PROJ, load, save_small, small


@pytest.fixture
def save(tmp_path):
    return functools.partial(save_small, tmp_path)


def problems(folder, dtype=jnp.float32):
    with pytest.raises(CheckpointError) as caught:
        load(folder, dtype)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    assert all(problem in message for problem in caught.value.problems[:10])
    return caught.value.problems


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_truncated_file(save, size):
    folder = save()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    (problem,) = problems(folder)
    assert problem.startswith("model.safetensors is damaged or incomplete (")


def test_git_lfs_pointer(save):
    folder = save()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (problem,) = problems(folder)
    assert "Git LFS pointer" in problem


def test_missing_and_surplus_weights_are_all_listed(save):
    folder = save(
        **{
            Q_PROJ: None,
            "language_model.lm_head.weight": None,
            "multi_modal_projector.linear_3.weight": torch.ones(3),
            "language_model.model.layers.1.input_layernorm.weight": torch.ones(42),
            "image_newline": torch.ones(42),
        }
    )
    assert sorted(problems(folder)) == [
        "missing weight language_model.lm_head.weight",
        f"missing weight {Q_PROJ}",
        "surplus weight image_newline: nothing in the model takes it",
        "surplus weight language_model.model.layers.1.input_layernorm.weight: the model that config.json describes has"
        " no decoder.layers.1.input_layernorm.scale",
        "surplus weight multi_modal_projector.linear_3.weight: the model that config.json describes has no"
        " projector.linear_3.weight",
    ]


def test_one_weight_in_two_spellings(save):
    folder = save(**{"lm_head.weight": torch.ones(101, 42)})
    assert problems(folder) == ("language_model.lm_head.weight and lm_head.weight are the same weight",)


def test_wrong_shapes(save):
    conv = "vision_tower.vision_model.embeddings.patch_embedding.weight"
    folder = save(**{Q_PROJ: torch.ones(42, 60), conv: torch.ones(24, 3, 36)})
    assert sorted(problems(folder)) == [
        f"{Q_PROJ} has shape [42, 60]; config.json asks for [60, 42]",
        f"{conv} has shape [24, 3, 36]; config.json asks for [24, 3, 6, 6]",
    ]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float64, torch.float8_e4m3fn])
def test_wrong_dtype(save, dtype):
    (problem,) = problems(save(**{Q_PROJ: torch.ones(60, 42).to(dtype)}))
    assert re.fullmatch(rf"{Q_PROJ} has dtype \w+; expected one of F32, F16, BF16", problem)


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite(save, source, value):
    bad = torch.ones(60, 42, dtype=source)
    bad[59, 41] = value
    norm = torch.full((42,), value, dtype=source)
    found = problems(save(**{Q_PROJ: bad, "language_model.model.norm.weight": norm}))
    assert sorted(found) == [
        f"{Q_PROJ} holds NaN or infinity",
        "language_model.model.norm.weight holds NaN or infinity",
    ]


def test_numbers_that_the_dtype_cannot_hold(save):
    folder = save(**{Q_PROJ: torch.full((60, 42), 1e5)})
    assert load(folder, jnp.bfloat16) is not None
    assert problems(folder, jnp.float16) == (f"{Q_PROJ} is too large for float16",)


def test_headers_are_checked_before_any_tensor_is_read(save, monkeypatch):
    folder = save(**{Q_PROJ: None, "language_model.model.norm.weight": torch.full((42,), float("nan"))})
    monkeypatch.setattr(table, "read_tensor", lambda *_: pytest.fail("a tensor was read"))
    assert problems(folder) == (f"missing weight {Q_PROJ}",)


def test_shards_missing_truncated_and_unlisted(save):
    """All at once, and without a word about the weights that these shards would have held."""
    folder = save(shards=4)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first, second, third, fourth = sorted(set(index["weight_map"].values()))
    (folder / first).unlink()
    (folder / second).write_bytes((folder / second).read_bytes()[:-1])
    gone = next(key for key, name in index["weight_map"].items() if name == third)
    index["weight_map"][gone] = fourth
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = problems(folder)
    assert found[0] == f"{first} is missing"
    assert found[1].startswith(f"{second} is damaged or incomplete")
    assert found[2] == f"{third} holds {gone}, which model.safetensors.index.json does not place there"
    assert found[3] == f"{fourth} lacks {gone}, which model.safetensors.index.json places there"
    assert len(found) == 4


def test_names_and_shapes_are_checked_where_a_shard_is_missing(save):
    folder = save(shards=2, **{"image_newline": torch.ones(42), Q_PROJ: None})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    (folder / index["weight_map"]["image_newline"]).unlink()
    assert len(problems(folder)) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_unreadable_index(save, text):
    folder = save(shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    (problem,) = problems(folder)
    assert problem.startswith("model.safetensors.index.json is not a readable index")


def test_index_that_points_out_of_the_folder(save):
    folder = save(shards=2)
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00001", "../model-00001"))
    assert "names ../model-00001-of-00002.safetensors, which is not a file of this folder" in problems(folder)[0]


def test_pickles_are_refused(tmp_path):
    small().config.save_pretrained(tmp_path)
    assert problems(tmp_path) == ("has neither model.safetensors nor model.safetensors.index.json",)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (problem,) = problems(tmp_path)
    assert problem.startswith("holds its weights only as pickles (pytorch_model.bin), which can run any code")


def test_long_lists_are_cut_short_but_kept(save):
    folder = save(**{f"extra.{i}": torch.ones(1) for i in range(25)})
    with pytest.raises(CheckpointError, match=r": 25 problems: surplus weight extra\.\d+.*; and 15 more$") as caught:
        load(folder)
    assert len(caught.value.problems) == 25


def test_no_config(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llavaa"}, "llavaa"),
        ({"model_type": "bert"}, "'bert'; supported are 'llava' and 'llava_next'"),
        ({"projector_hidden_act": "gelo"}, "projector_hidden_act is 'gelo'; supported are gelu, "),
        ({"vision_config": {"hidden_act": "tanh"}}, "vision_config.hidden_act is 'tanh'"),
        ({"text_config": {"hidden_act": 3}}, "hidden_act"),
        ({"text_config": {"model_type": "gemma"}}, "text_config.model_type is 'gemma'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision_config.model_type is 'siglip_vision_model'"),
        ({"text_config": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}}, "rotary scaling 'yarn'"),
        ({"vision_feature_layer": 9}, "vision_feature_layer"),
        ({"vision_feature_select_strategy": "all"}, "vision_feature_select_strategy"),
    ],
)
def test_configs_that_are_refused(save, change, message):
    folder = save()
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_config_that_is_not_json(save):
    folder = save()
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
