"""Checkpoints: every spelling loads, and what is loaded can be written back bit by bit."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
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
from models.io.table import AS_IS, Ignored, Row, dotted, load_weights, match, variables_of
from models.llava import Llava
from tests import checkpoints
from tests.checkpoints import (
    LAYOUTS,
    Q_PROJ,
    SMALL,
    abstract,
    build,
    exported,
    load,
    make_llava,
    save_small,
    small,
    tensors,
)


def arrays(model):
    return {dotted(path): np.asarray(variable[...]) for path, variable in variables_of(model).items()}


def assert_same_bits(got, want):
    assert got.keys() == want.keys()
    for key in want:
        assert got[key].dtype == want[key].dtype
        assert got[key].shape == want[key].shape
        assert got[key].tobytes() == want[key].tobytes(), key


@pytest.fixture(scope="module")
def torch_model():
    return small()


@pytest.fixture
def save(tmp_path):
    return functools.partial(save_small, tmp_path)


# What loads


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_spelling_and_sharding_loads_the_same(torch_model, save, layout, shards):
    folder = save(layout=layout, shards=shards)
    assert_same_bits(exported(load(folder)), {key: value.numpy() for key, value in tensors(torch_model).items()})


def test_what_transformers_saves_loads(torch_model, tmp_path):
    torch_model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) >= 3
    assert_same_bits(exported(load(tmp_path)), {key: value.numpy() for key, value in tensors(torch_model).items()})


def test_buffers_of_old_files_are_ignored(tmp_path):
    model = make_llava(tmp_path, old_buffers=True, **SMALL)
    assert_same_bits(exported(load(tmp_path)), {key: value.numpy() for key, value in tensors(model).items()})


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
def test_nothing_else_is_ignored(torch_model, key):
    """Neighbours of the keys that rows take, one of them with an Arabic digit zero, belong to no row."""
    table = Llava.table(llava_config(torch_model.config))
    assert match({key: None}, table, {}) == ([], [f"surplus weight {key}: nothing in the model takes it"])


def test_tables_that_do_not_fit_are_found():
    """Two rows for one key, and none for a weight of the model."""
    rows = [Row("(?P<name>[a-z]+)", "{name}", "{name}", AS_IS), Row("ab", "b", "ab", AS_IS), Ignored("x|y", "")]
    weight = jax.ShapeDtypeStruct((1,), jnp.float32)
    header = Header(Path(), (1,), "F32")
    headers = {"ab": header, "x": header, "cd": header}
    _, found = match(headers, rows, {("cd",): weight, ("e", 0): weight})
    assert found == ["ab matches 2 rows of the table", "x matches 2 rows of the table", "0 rows write e.0"]


def test_every_key_matches_one_row_and_every_row_has_a_key(torch_model):
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


def test_a_tied_head_in_the_file_is_ignored_and_not_written_back(torch_model, save):
    folder = save()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = load(folder)
    assert model.decoder.lm_head is None
    assert set(tensors(torch_model)) - set(exported(model)) == {"language_model.lm_head.weight"}


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_floats_are_cast_as_torch_does(torch_model, save, source, dtype):
    stored = {key: value.to(source) for key, value in tensors(torch_model).items()}
    got = exported(load(save(**stored), dtype))
    for key, value in stored.items():
        want = value.to(getattr(torch, dtype.dtype.name))
        assert got[key].dtype == dtype
        assert got[key].tobytes() == want.view(torch.uint8).numpy().tobytes(), key


def test_sharding_is_asked_for_every_weight(save):
    mesh = jax.make_mesh((1,), ("model",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
    asked = {}

    def sharding(path, shape):
        asked[path] = shape
        return place

    model = load(save(), sharding=sharding)
    assert asked == {path: array.shape for path, array in arrays(model).items()}
    assert {variable[...].sharding for variable in variables_of(model).values()} == {place}


def test_loading_holds_in_tree_mode(save):
    folder = save()
    want = arrays(load(folder))
    with nnx.set_graph_mode(False):
        model = load(folder)
        assert_same_bits(arrays(model), want)
        assert_same_bits(exported(model), exported(load(folder)))


def test_the_abstract_model_is_what_flax_makes_of_it(torch_model):
    config = llava_config(torch_model.config)
    want = nnx.eval_shape(lambda: Llava(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert nnx.split(abstract(config, jnp.bfloat16)) == nnx.split(want)


def test_the_abstract_model_is_left_as_it_is(save):
    folder = save()
    family, config = family_of(folder)
    empty = abstract(config)
    load_weights(empty, folder, family.table(config), dtype=jnp.float32)
    assert all(isinstance(v.get_value(), jax.ShapeDtypeStruct) for v in variables_of(empty).values())


# Writing back


def test_transformers_loads_what_is_exported(torch_model, save, tmp_path_factory):
    out = tmp_path_factory.mktemp("export")
    torch_model.config.save_pretrained(out)
    model = load(save(layout="memory"))
    file = export_safetensors(model, Llava.table(model.config), out)
    assert_same_bits(load_file(file), {key: value.numpy() for key, value in tensors(torch_model).items()})
    again, info = transformers.LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    for key, value in torch_model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_an_export_that_fails_leaves_the_old_file(save, monkeypatch):
    folder = save()
    model, before = load(folder), (folder / "model.safetensors").read_bytes()

    def disk_full(weights, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        export_safetensors(model, Llava.table(model.config), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_open_folder_reads_headers(save):
    files = open_folder(save())
    assert files.headers[Q_PROJ] == Header(files.folder / "model.safetensors", (60, 42), "F32")
