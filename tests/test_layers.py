"""Attention and linear layers against NumPy in float64 and against JAX's own attention."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.engine.target import CPU, CUDA, target_of
from models.nn.attention import QUERY_BLOCK, attend, attend_cached, by_head, fits_cudnn, log_distances, log_sizes
from models.nn.linear import Linear
from models.nn.rotary import rotation

LENGTH = 2 * QUERY_BLOCK + 37


def heads(dtype=jnp.float32, length=LENGTH):
    rng = np.random.default_rng(0)
    shapes = ((2, length, 6, 8), (2, length, 3, 8), (2, length, 3, 8))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def softmax_attention(query, key, value, mask, bias=0.0):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    key, value = (np.repeat(x, query.shape[2] // key.shape[2], axis=2) for x in (key, value))
    logits = np.einsum("bshd,bthd->bhst", query, key) / query.shape[-1] ** 0.5 + bias
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


def repeated(array, sizes):
    """[B, T, ...] -> [B, T', ...], each key as often as its size says; the rest zeros, and which are no rest."""
    rows = [np.repeat(one, size, axis=0) for one, size in zip(np.asarray(array, np.float64), sizes, strict=True)]
    out = np.zeros((len(rows), max(map(len, rows)), *array.shape[2:]))
    for row, keys in enumerate(rows):
        out[row, : len(keys)] = keys
    return out, np.arange(out.shape[1]) < np.array([[len(keys)] for keys in rows])


@pytest.mark.parametrize("how", ["causal", "window", "ragged"])
def test_as_many_copies_of_a_key_are_one_key_with_the_logarithm_of_their_number(how):
    """In prefill: grouped heads, two blocks of queries, sizes that differ by row."""
    length = QUERY_BLOCK + 37
    query, key, value = heads(length=length)
    sizes = np.random.default_rng(1).integers(1, 6, (2, length))
    slot = np.arange(length)
    mask = slot <= slot[:, None]
    mask = np.stack([mask & (slot > slot[:, None] - 9), mask & (slot < 50)] if how != "causal" else [mask, mask])
    if how == "ragged":
        mask = np.broadcast_to(slot < np.array([[[length]], [[50]]]), mask.shape)
    got = attend(
        query,
        key,
        value,
        mask=None if how == "causal" else jnp.asarray(mask),
        bias=log_sizes(jnp.asarray(sizes, jnp.float32)),
        causal=how != "ragged",
    )
    (keys, there), (values, _) = repeated(key, sizes), repeated(value, sizes)
    seen = repeated(np.swapaxes(mask, 1, 2), sizes)[0].swapaxes(1, 2).astype(bool) & there[:, None]
    np.testing.assert_allclose(got, softmax_attention(query, keys, values, seen), atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_what_rotary_embedding_takes_from_far_keys_is_added(causal):
    """In two blocks of queries, at positions with gaps and three axes."""
    length, sections = QUERY_BLOCK + 37, (1, 2, 1)
    query, key, value = heads(length=length)
    places = np.cumsum(np.random.default_rng(1).integers(1, 9, (2, length, 3)), axis=1)
    at = rotation(
        jnp.asarray(places, jnp.int32), head_dim=8, theta=777.0, factor=1.0, sections=sections, interleaved=False
    )
    apart = np.repeat(places[:, :, None] - places[:, None], sections, axis=-1) * 777.0 ** -(np.arange(4) / 4)
    want = np.log(2 - np.cos(apart).mean(-1))
    assert want.max() > 0.7
    bias = log_distances(at, at)
    np.testing.assert_allclose(bias, want, atol=2e-4)  # angles near 1,000 in float32
    got = attend(query, key, value, bias=bias, causal=causal)
    seen = np.tri(length, dtype=bool)[None] if causal else np.ones((1, length, length), bool)
    np.testing.assert_allclose(got, softmax_attention(query, key, value, seen, want[:, None]), atol=1e-4)


@pytest.mark.parametrize("merge", [False, True])
def test_and_so_it_is_in_decoding(merge):
    query, key, value = heads(length=31)
    rng = np.random.default_rng(2)
    sizes, mask = rng.integers(1, 6, (2, 31)), rng.random((2, 31)) < 0.7
    held = [by_head(x, decode_capacity=6, merge=merge) for x in (key, value)]
    sizes_held, mask_held = np.pad(sizes, ((0, 0), (0, 6))), np.pad(mask, ((0, 0), (0, 6)))  # sizes 0: nothing there
    got = attend_cached(
        query[:, :1], *held, mask=jnp.asarray(mask_held), bias=log_sizes(jnp.asarray(sizes_held, jnp.float32))
    )
    (keys, there), (values, _) = repeated(key, sizes), repeated(value, sizes)
    seen = repeated(mask[..., None], sizes)[0][..., 0].astype(bool) & there
    np.testing.assert_allclose(got, softmax_attention(query[:, :1], keys, values, seen[:, None]), atol=2e-6)


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
