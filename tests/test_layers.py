"""Attention and linear layers against NumPy in float64 and against JAX's own attention."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.engine.target import CPU, CUDA, target_of
from models.layers.attention import QUERY_BLOCK, attend, fits_cudnn
from models.layers.linear import Linear

LENGTH = 2 * QUERY_BLOCK + 37


def heads(dtype=jnp.float32, length=LENGTH):
    rng = np.random.default_rng(0)
    shapes = ((2, length, 6, 8), (2, length, 3, 8), (2, length, 3, 8))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def softmax_attention(query, key, value, mask):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    key, value = (np.repeat(x, query.shape[2] // key.shape[2], axis=2) for x in (key, value))
    logits = np.einsum("bshd,bthd->bhst", query, key) / query.shape[-1] ** 0.5
    logits = np.where(mask[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out = np.einsum("bhst,bthd->bshd", weights / weights.sum(-1, keepdims=True), value)
    return out.reshape(*out.shape[:2], -1)


CAUSAL = np.tri(LENGTH, dtype=bool)[None]
BANDED = CAUSAL & ~np.tri(LENGTH, k=-9, dtype=bool)
RAGGED = np.arange(LENGTH)[None, None] < np.array([LENGTH, 50])[:, None, None]


@pytest.mark.parametrize(
    ("mask", "causal", "means"),
    [
        (None, False, np.ones_like(CAUSAL)),
        (None, True, CAUSAL),
        (BANDED, True, BANDED),
        (RAGGED, False, RAGGED),
    ],
    ids=["all", "causal", "window", "ragged"],
)
def test_attention_in_blocks_is_attention(mask, causal, means):
    query, key, value = heads()
    got = attend(query, key, value, mask=None if mask is None else jnp.asarray(mask), causal=causal)
    np.testing.assert_allclose(got, softmax_attention(query, key, value, means), atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_what_the_fused_kernel_is_asked_for(causal):
    query, key, value = heads(jnp.bfloat16)
    ours = attend(query, key, value, causal=causal).astype(jnp.float32)
    theirs = jax.nn.dot_product_attention(query, key, value, is_causal=causal).reshape(ours.shape)
    np.testing.assert_allclose(ours, theirs.astype(jnp.float32), atol=2e-2)


@pytest.mark.parametrize(
    ("capability", "target"), [("9.0", CUDA), ("10.3", CUDA), ("7.5", CPU), ("gfx942", CPU), (None, CPU)]
)
def test_where_the_kernel_is_used(capability, target, monkeypatch):
    device = types.SimpleNamespace(**({} if capability is None else {"compute_capability": capability}))
    assert target_of(device) == CPU  # whatever the device is, JAX finds no cuDNN here
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda query, *_, **__: query)
    assert target_of(device) == target


@pytest.mark.parametrize(
    ("dtype", "width", "fits"),
    [(jnp.bfloat16, 64, True), (jnp.float16, 128, True), (jnp.float32, 64, False), (jnp.bfloat16, 10, False)],
)
def test_what_the_kernel_takes(dtype, width, fits, monkeypatch):
    assert fits_cudnn(dtype, width) is fits
    asked = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda query, *_, **options: asked.append(options) or query)
    query, key, value = (jnp.zeros((1, 3, count, width), dtype) for count in (4, 2, 2))
    attend(query, key, value, causal=True, kernel="cudnn")
    attend(query, key, value, mask=jnp.ones((1, 3, 3), bool), kernel="cudnn")
    attend(query, key, value)
    assert asked == [{"is_causal": True, "implementation": "cudnn"}] * fits


@pytest.mark.parametrize("use_bias", [False, True])
def test_linear_layers_hold_their_weights_by_rows(use_bias):
    linear = Linear(7, 5, use_bias=use_bias, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 7))
    want = np.einsum("abi,oi->abo", x, np.asarray(linear.weight[...], np.float64))
    if use_bias:
        linear.bias[...] = jnp.arange(5.0)
        want += np.arange(5)
    assert linear.weight.shape == (5, 7)
    np.testing.assert_allclose(linear(jnp.asarray(x, jnp.float32)), want, atol=1e-5)
