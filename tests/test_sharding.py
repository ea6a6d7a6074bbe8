"""A model on eight forced host devices says what it says on one."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from models.engine.sharding import auto_mesh, weight_sharding
from models.llava import Llava
from tests.devices import on_devices
from tests.tiny import IMAGE_TOKEN, make_inputs

DEVICES = 8


def on_eight_devices(folder: str) -> None:
    """The body of the test; its own process, because the number of devices is fixed when JAX starts."""
    assert jax.device_count() == DEVICES, jax.devices()
    ids, pixels, mask = make_inputs(2, (9, 4, 12, 7), (1, 2, 1, 1))
    options = {"attention_mask": mask, "max_new_tokens": 8}
    plain = Llava.from_pretrained(folder)
    want = np.asarray(plain(ids, pixels, mask))
    tokens = np.asarray(plain.generate(ids, pixels, carve=6, **options))
    meshes = {
        "both axes": jax.make_mesh((2, 4), ("data", "model")),
        "model alone": jax.make_mesh((4,), ("model",), devices=jax.devices()[:4]),
        "data alone": jax.make_mesh((4,), ("data",), devices=jax.devices()[:4]),
    }
    for name, mesh in meshes.items():
        split = Llava.from_pretrained(folder, mesh=mesh)
        parts = mesh.shape.get("model", 1)
        layer = split.decoder.layers[1]
        for linear, axis in ((layer.self_attn.q_proj, 0), (layer.mlp.gate_proj, 0), (layer.mlp.down_proj, 1)):
            weight = linear.weight[...]
            shard = weight.addressable_shards[0].data.shape
            assert shard[axis] * parts == weight.shape[axis], (name, shard, weight.shape)
        prompt = split.prompt(ids, pixels, mask)
        rows = prompt.input_ids.addressable_shards[0].data.shape[0]
        assert rows * mesh.shape.get("data", 1) == 4, (name, rows)
        np.testing.assert_array_equal(split.generate(ids, pixels, carve=6, **options), tokens, err_msg=name)
        if name == "both axes":
            np.testing.assert_allclose(np.asarray(split(ids, pixels, mask)), want, atol=2e-5 * np.abs(want).max())
            state = jax.block_until_ready(split.prefill(prompt, carve=6))
            assert len(state.cache.layers[2][0].sharding.device_set) == mesh.size
        print(name, "is right")


def test_a_sharded_model_says_what_the_whole_one_says(tmp_path):
    from tests.checkpoints import make_llava  # PyTorch, which the process with the devices does without

    text = {"vocab_size": 104, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    vision = {"num_attention_heads": 4, "num_hidden_layers": 2}
    make_llava(tmp_path, vision=vision, text=text, image_token_index=IMAGE_TOKEN)
    code = f"from tests.test_sharding import on_eight_devices; on_eight_devices({str(tmp_path)!r})"
    assert on_devices(DEVICES, code).count("is right") == 3


def test_what_does_not_divide_stays_whole():
    place = weight_sharding(auto_mesh(Mesh(np.array(jax.devices()[:1]), ("model",))))
    assert place("decoder.layers.3.mlp.up_proj.weight", (52, 40)).spec == PartitionSpec("model", None)
    assert place("decoder.layers.3.self_attn.o_proj.weight", (40, 60)).spec == PartitionSpec(None, "model")
    assert place("decoder.norm.scale", (40,)).spec == PartitionSpec(None)
    assert place("vision_tower.layers.0.self_attn.q_proj.bias", (24,)).spec == PartitionSpec("model")
    assert place("vision_tower.layers.0.qkv.weight", (3, 24, 24)).spec == PartitionSpec(None, "model", None)  # by heads


def test_an_unknown_axis_is_one_clear_error():
    with pytest.raises(ValueError, match=r"expected 'data' .batch., 'model' .weights., or both"):
        auto_mesh(Mesh(np.array(jax.devices()[:1]), ("x",)))
