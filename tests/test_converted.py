"""Folders that were converted: read bit by bit to where they are to live, and refused where they are damaged."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from models import convert
from models.errors import CheckpointError
from models.io import orbax
from models.llava import Llava
from tests.checkpoints import Q_PROJ, exported, save_small, small, tensors
from tests.test_checkpoint import assert_same_bits


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    (folder / "hf").mkdir()
    convert.convert(save_small(folder / "hf", shards=3), folder / "orbax")
    return folder / "orbax"


def published():
    return {key: value.numpy() for key, value in tensors(small()).items()}


def test_from_pretrained_reads_it_bit_by_bit(converted):
    assert_same_bits(exported(Llava.from_pretrained(converted)), published())
    half = exported(Llava.from_pretrained(converted, dtype=jnp.bfloat16))
    assert_same_bits(half, {key: value.astype(ml_dtypes.bfloat16) for key, value in published().items()})


def test_orbax_alone_reads_it(converted):
    tree = ocp.PyTreeCheckpointer().restore((converted / orbax.WEIGHTS).absolute())
    got = tree["decoder"]["layers"]["0"]["self_attn"]["q_proj"]["weight"]
    np.testing.assert_array_equal(got, published()[Q_PROJ])


def test_weights_are_restored_to_their_places_on_a_mesh(converted):
    mesh = jax.make_mesh((1,), ("model",))
    weight = Llava.from_pretrained(converted, mesh=mesh).decoder.layers[0].self_attn.q_proj.weight[...]
    assert weight.sharding.spec == jax.sharding.PartitionSpec("model", None)


def copied(converted, tmp_path):
    folder = tmp_path / "dest"
    shutil.copytree(converted, folder)
    return folder


def test_converted_folders_that_are_damaged(converted, tmp_path):
    folder = copied(converted, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 2, "intermediate_size": 71}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing weight decoder\.layers\.1\.") as caught:
        Llava.from_pretrained(folder)
    assert len(caught.value.problems) == 9 + 3
    shape = "decoder.layers.0.mlp.up_proj.weight has shape [70, 42]; config.json asks for [71, 42]"
    assert shape in caught.value.problems


@pytest.mark.parametrize("gone", ["weights", "weights/_METADATA", "weights/decoder.lm_head.weight"])
def test_converted_folders_that_are_incomplete(converted, tmp_path, gone):
    folder = copied(converted, tmp_path)
    shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
    with pytest.raises(CheckpointError, match="weights is damaged or incomplete") as caught:
        Llava.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read"), ("{}", "cannot be read"), ('{"mapping": 0}', "Convert it again")]
)
def test_manifests_that_are_refused(converted, tmp_path, text, said):
    folder = copied(converted, tmp_path)
    (folder / "conversion.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        Llava.from_pretrained(folder)
