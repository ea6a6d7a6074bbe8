"""Rotary positions with several axes (M-RoPE) against transformers' Qwen2-VL and Qwen3-VL, and against one axis."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Qwen2VLTextConfig, Qwen3VLTextConfig
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3

from models.engine.loop import Flow, run_layers
from models.nn.rotary import rotate, rotation
from tests.tiny import make_llava

WIDTH, SECTIONS, THETA = 32, (4, 6, 6), 500.0
rotation_of = functools.partial(rotation, head_dim=WIDTH, theta=THETA, factor=1.0)
QWEN = {
    "qwen2_vl": (Qwen2VLTextConfig, qwen2.Qwen2VLRotaryEmbedding, SECTIONS),
    "qwen3_vl": (Qwen3VLTextConfig, qwen3.Qwen3VLTextRotaryEmbedding, (9, 4, 3)),
}


@pytest.mark.parametrize("family", QWEN)
def test_three_axes_are_those_of_qwen(family):
    make, theirs, sections = QWEN[family]
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 90, (2, 11, 3))
    query, key = rng.standard_normal((2, 2, 11, 3, WIDTH)).astype(np.float32)
    rope = {"rope_type": "default", "rope_theta": THETA, "mrope_section": list(sections)}
    config = make(hidden_size=3 * WIDTH, num_attention_heads=3, head_dim=WIDTH, rope_parameters=rope)
    by_axis = torch.tensor(positions).permute(2, 0, 1)
    cosine, sine = theirs(config)(torch.tensor(query), by_axis)
    want = qwen2.apply_rotary_pos_emb(torch.tensor(query), torch.tensor(key), cosine, sine, unsqueeze_dim=2)
    given = {"sections": sections, "interleaved": family == "qwen3_vl"}
    at = rotation_of(jnp.asarray(positions), **given)
    for ours, other in zip((query, key), want, strict=True):
        np.testing.assert_allclose(rotate(jnp.asarray(ours), at), other.numpy(), atol=3e-5)
    swapped = rotation_of(jnp.asarray(positions[..., ::-1]), **given)
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


@pytest.mark.parametrize(
    ("sections", "axes", "interleaved"),
    [((16,), 3, False), (SECTIONS, 1, False), ((4, 6, 5), 3, False), (SECTIONS, 3, True)],
)
def test_sections_that_do_not_fit(sections, axes, interleaved):
    with pytest.raises(ValueError, match="sections"):
        rotation_of(jnp.zeros((1, 2, axes), jnp.int32), sections=sections, interleaved=interleaved)
