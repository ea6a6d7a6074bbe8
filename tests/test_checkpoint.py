"""Checkpoints: every spelling loads, and what is loaded can be written back bit by bit."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

from models.auto import family_of
from models.families.llava import llava_config
from models.io import export
from models.io.export import export_safetensors
from models.io.shards import Header, open_folder
from models.io.table import AS_IS, Ignored, Row, load_weights, match, variables_of
from models.llava import Llava
from tests import checkpoints
from tests.checkpoints import (
    LAYOUTS,
    Q_PROJ,
    SMALL,
    abstract,
    assert_same_bits,
    build,
    edit,
    exported,
    load,
    published,
    save_small,
    small,
    tensors,
)

# What loads


@pytest.mark.parametrize(("layout", "shards"), [*((layout, 1) for layout in LAYOUTS), ("published", 3), ("memory", 3)])
def test_every_spelling_and_sharding_loads_the_same(tmp_path, layout, shards):
    assert_same_bits(exported(load(save_small(tmp_path, layout=layout, shards=shards))), published())


def test_what_transformers_saves_loads(tmp_path):
    small().save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) >= 3
    assert_same_bits(exported(load(tmp_path)), published())


def test_buffers_of_old_files_are_ignored(tmp_path):
    assert_same_bits(exported(load(save_small(tmp_path, **checkpoints.buffers(small())))), published())


@pytest.mark.parametrize(
    "key",
    [
        "vision_tower.vision_model.embeddings.position_ids.x",
        "x.vision_tower.vision_model.embeddings.position_ids",
        "vision_tower_vision_model.embeddings.position_ids",
        "language_model.model.layers.0.self_attn.rotary_emb.cos_cached",
        "language_model.model.layers.00.input_layernorm.weight",
        "language_model.model.layers.0.input_layernorm.weight\n",
        "language_model.model.layers.٠.input_layernorm.weight",
        "language_model.embed_tokens.weight",
    ],
)
def test_nothing_else_is_ignored(key):
    """Neighbours of the keys that rows take, one of them with an Arabic digit zero, belong to no row."""
    table = Llava.table(llava_config(small().config))
    assert match({key: None}, table, {}) == ([], [f"surplus weight {key}: nothing in the model takes it"])


def test_tables_that_do_not_fit_are_found():
    """Two rows for one key, and none for a weight of the model."""
    rows = [Row("(?P<name>[a-z]+)", "{name}", "{name}", AS_IS), Row("ab", "b", "ab", AS_IS), Ignored("x|y", "")]
    weight = jax.ShapeDtypeStruct((1,), jnp.float32)
    header = Header(Path(), (1,), "F32")
    headers = {"ab": header, "x": header, "cd": header}
    _, found = match(headers, rows, {("cd",): weight, ("e", 0): weight})
    assert found == ["ab matches 2 rows of the table", "x matches 2 rows of the table", "0 rows write e.0"]


def test_every_key_matches_one_row_and_every_row_has_a_key():
    biased = build(**SMALL | {"text": {"num_hidden_layers": 1, "attention_bias": True, "mlp_bias": True}})
    table = Llava.table(llava_config(biased.config))
    rotary = {"language_model.model.rotary_emb.inv_freq"}
    keys = {key for layout in LAYOUTS for key in tensors(biased, layout)} | checkpoints.buffers(biased).keys() | rotary
    used = set()
    for key in keys:
        (row,) = [row for row in table if re.fullmatch(row.pattern, key)]
        used.add(row)
    assert used == set(table)
    assert all(row.reason for row in table if isinstance(row, Ignored))


def test_a_tied_head_in_the_file_is_ignored_and_not_written_back(tmp_path):
    edit(save_small(tmp_path) / "config.json", {"tie_word_embeddings": True})
    model = load(tmp_path)
    assert model.decoder.lm_head is None
    assert set(published()) - set(exported(model)) == {"language_model.lm_head.weight"}


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_are_cast_as_torch_does(tmp_path, source):
    stored = {key: value.to(source) for key, value in tensors(small()).items()}
    save_small(tmp_path, **stored)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        got = exported(load(tmp_path, dtype))
        for key, value in stored.items():
            want = value.to(getattr(torch, dtype.dtype.name))
            assert got[key].dtype == dtype
            assert got[key].tobytes() == want.view(torch.uint8).numpy().tobytes(), key


def test_sharding_is_asked_for_every_weight(tmp_path):
    mesh = jax.make_mesh((1,), ("model",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
    shapes = {}
    model = load(save_small(tmp_path), sharding=lambda path, shape: shapes.update({path: shape}) or place)
    weights = variables_of(model)
    assert shapes == {".".join(map(str, path)): weight.shape for path, weight in weights.items()}
    assert {weight[...].sharding for weight in weights.values()} == {place}


def test_loading_holds_in_tree_mode_and_leaves_the_abstract_model_as_it_is(tmp_path):
    family, config = family_of(save_small(tmp_path))
    with nnx.set_graph_mode(False):
        empty = abstract(config)
        assert_same_bits(exported(load_weights(empty, tmp_path, family.table(config), dtype=jnp.float32)), published())
    assert all(isinstance(v.get_value(), jax.ShapeDtypeStruct) for v in variables_of(empty).values())


def test_the_abstract_model_is_what_flax_makes_of_it():
    config = llava_config(small().config)
    want = nnx.eval_shape(lambda: Llava(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert nnx.split(abstract(config, jnp.bfloat16)) == nnx.split(want)


# Writing back


def test_transformers_loads_what_is_exported(tmp_path):
    model = load(save_small(tmp_path, layout="memory"))
    assert_same_bits(load_file(export_safetensors(model, Llava.table(model.config), tmp_path)), published())
    again, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for key, value in small().state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_an_export_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    model = load(save_small(tmp_path))
    before = (tmp_path / "model.safetensors").read_bytes()

    def disk_full(weights, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        export_safetensors(model, Llava.table(model.config), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_open_folder_reads_headers(tmp_path):
    files = open_folder(save_small(tmp_path))
    assert files.headers[Q_PROJ] == Header(tmp_path / "model.safetensors", (60, 42), "F32")
