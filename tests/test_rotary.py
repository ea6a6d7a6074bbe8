"""Rotary positions with several axes (M-RoPE) against transformers' Qwen2-VL, and against one axis."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Qwen2VLTextConfig
from transformers.models.qwen2_vl import modeling_qwen2_vl as theirs

from models.engine.loop import Flow, run_layers
from models.nn.rotary import rotate, rotation
from tests.tiny import make_llava

WIDTH, SECTIONS, THETA = 32, (4, 6, 6), 500.0


def test_three_axes_are_those_of_qwen2_vl():
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 90, (2, 11, 3))
    query, key = rng.standard_normal((2, 2, 11, 3, WIDTH)).astype(np.float32)
    rope = {"rope_type": "default", "rope_theta": THETA, "mrope_section": list(SECTIONS)}
    config = Qwen2VLTextConfig(hidden_size=3 * WIDTH, num_attention_heads=3, rope_parameters=rope)
    by_axis = torch.tensor(positions).permute(2, 0, 1)
    cosine, sine = theirs.Qwen2VLRotaryEmbedding(config)(torch.tensor(query), by_axis)
    want = theirs.apply_rotary_pos_emb(torch.tensor(query), torch.tensor(key), cosine, sine, unsqueeze_dim=2)
    at = rotation(jnp.asarray(positions), head_dim=WIDTH, theta=THETA, factor=1.0, sections=SECTIONS)
    for ours, other in zip((query, key), want, strict=True):
        np.testing.assert_allclose(rotate(jnp.asarray(ours), at), other.numpy(), atol=3e-5)
    swapped = rotation(jnp.asarray(positions[..., ::-1]), head_dim=WIDTH, theta=THETA, factor=1.0, sections=SECTIONS)
    assert np.abs(np.asarray(rotate(jnp.asarray(query), swapped)) - want[0].numpy()).max() > 0.1


def test_equal_axes_are_one_axis():
    hidden = jnp.asarray(np.random.default_rng(1).standard_normal((2, 9, 40)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(9)[:, None] * 3, (2, 9, 1))
    lengths = jnp.array([9, 7])
    got = []
    for sections in ((5,), (1, 2, 2)):
        decoder = make_llava(rope_sections=sections, num_layers=2).decoder
        places = jnp.broadcast_to(positions, (2, 9, len(sections)))
        got.append(run_layers(decoder.layers, hidden, Flow(decoder, places, lengths)))
    np.testing.assert_allclose(got[1], got[0], atol=1e-5)


@pytest.mark.parametrize(("sections", "axes"), [((16,), 3), (SECTIONS, 1), ((4, 6, 5), 3)])
def test_sections_that_do_not_fit(sections, axes):
    with pytest.raises(ValueError, match="sections"):
        rotation(jnp.zeros((1, 2, axes), jnp.int32), head_dim=WIDTH, theta=THETA, factor=1.0, sections=sections)
