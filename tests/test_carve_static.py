"""Static shapes everywhere: tracing once, exporting, real sizes, scan, shard over devices."""

import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import tokencarve_jax as tc
from tests.devices import on_devices
from tests.test_carve import inputs

PLATFORMS = ("cpu", "cuda", "tpu")


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def decoder_step(weights, x, visual):
    """A layer, the cut, a layer."""

    def layer(w, x):
        q, k, v = (jnp.einsum("bsd,de->bse", x, m, precision="highest").reshape(*x.shape[:2], 4, -1) for m in w)
        return x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape), q[:, -1], k

    x, query, keys = layer(weights[0], x)
    carved = tc.carve_sequence(x, tc.last_query_attention(query, keys), visual, keep=0.25)
    return layer(weights[1], carved.hidden)[0], jnp.take_along_axis(keys, carved.kept[..., None, None], axis=1)


@pytest.mark.parametrize("information", ["svd", "gram", "jacobi", "subspace", "norm"])
def test_carve_exports_to_every_platform(information):
    carve = jax.jit(lambda t, a: tc.carve(t, a, keep=0.222, information=information))
    for platform in PLATFORMS:
        exported = export.export(carve, platforms=[platform])(abstract(2, 576, 192), abstract(2, 576))
        assert exported.platforms == (platform,)
        assert exported.out_avals[0].shape == (2, 128, 192)


def test_a_carved_decoder_step_exports_to_all_platforms_at_once_and_runs():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 3, 32, 32)).astype(np.float32) / 6
    x = rng.normal(size=(2, 40, 32)).astype(np.float32)
    visual = np.broadcast_to(np.arange(4, 36, dtype=np.int32), (2, 32))
    step = jax.jit(decoder_step)
    exported = export.export(step, platforms=PLATFORMS)(weights, x, visual)
    assert exported.platforms == PLATFORMS
    hidden, cache = step(weights, x, visual)
    assert hidden.shape == (2, 16, 32)
    assert cache.shape == (2, 16, 4, 8)
    for ours, theirs in zip((hidden, cache), exported.call(weights, x, visual), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(("width", "heads"), [(4096, 32), (5120, 40)], ids=["7B", "13B"])
@pytest.mark.parametrize(("keep", "kept"), [(0.333, 192), (0.222, 128), (0.111, 64)])
def test_shapes_at_real_sizes(width, heads, keep, kept):
    length = 36 + 576 + 40

    def cut(hidden, query, keys, positions):
        return tc.carve_sequence(hidden, tc.last_query_attention(query, keys), positions, keep=keep)

    out = jax.eval_shape(
        cut,
        abstract(8, length, width, dtype=jnp.bfloat16),
        abstract(8, heads, 128, dtype=jnp.bfloat16),
        abstract(8, length, heads, 128, dtype=jnp.bfloat16),
        abstract(8, 576, dtype=jnp.int32),
    )
    assert (out.hidden.shape, out.hidden.dtype) == ((8, 76 + kept, width), jnp.bfloat16)
    assert (out.kept.shape, out.kept.dtype) == ((8, 76 + kept), jnp.int32)


def test_values_never_retrace():
    traces = []

    @jax.jit
    def carve(tokens, attention, valid):
        traces.append(tokens.shape)
        return tc.carve(tokens, attention, keep=7, valid=valid)

    for seed in range(3):
        tokens, attention = inputs(24, 8, 2, seed)
        carve(tokens, attention, np.arange(48).reshape(2, 24) % 24 < 24 - seed)
    assert traces == [(2, 24, 8)]
    tokens, attention = inputs(25, 8, 2)
    carve(tokens, attention, np.ones((2, 25), bool))
    assert len(traces) == 2


def test_inside_scan_and_grad_of_scan():
    tokens, attention = inputs(24, 8, 3)

    def body(total, xs):
        return total + tc.carve(*xs, keep=7).tokens.sum(), tc.carve(*xs, keep=7).indices

    total, indices = jax.jit(lambda t, a: jax.lax.scan(body, 0.0, (t, a)))(tokens, attention)
    np.testing.assert_array_equal(indices, jax.jit(lambda t, a: tc.carve(t, a, keep=7).indices)(tokens, attention))
    gradient = jax.jit(jax.grad(lambda t: jax.lax.scan(body, 0.0, (t, attention))[0]))(tokens)
    assert np.isfinite(gradient).all()
    assert np.isfinite(total)


def test_carved_is_a_pytree():
    tokens, attention = inputs(24, 8, 1)
    carved = tc.carve(tokens[0], attention[0], keep=7, information="norm")
    assert len(jax.tree.leaves(carved)) == 3
    assert isinstance(jax.tree.map(lambda leaf: leaf, carved), tc.Carved)


def test_no_import_of_flax():
    code = "import sys, tokencarve_jax; assert not {'flax', 'models', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[1], timeout=600)


EIGHT_DEVICES = """
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    import tokencarve_jax as tc
    from tests.test_carve import inputs

    assert jax.device_count() == 8, jax.devices()
    tokens, attention = inputs(24, 16, 16)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    by_batch = NamedSharding(mesh, P("data"))
    carve = lambda t, a: tc.carve(t, a, keep=7)
    plain = jax.jit(carve)(tokens, attention)
    split = [jax.device_put(x, by_batch) for x in (tokens, attention)]
    for sharded in (
        jax.jit(carve, out_shardings=by_batch)(*split),
        jax.jit(jax.shard_map(carve, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(*split),
    ):
        assert len(sharded.tokens.sharding.device_set) == 8
        np.testing.assert_array_equal(sharded.indices, plain.indices)
        np.testing.assert_array_equal(sharded.assignment, plain.assignment)
        np.testing.assert_allclose(sharded.tokens, plain.tokens, rtol=1e-6)

    positions = jax.device_put(np.broadcast_to(np.arange(2, 22), (16, 20)), by_batch)
    cut = lambda t, a, p: tc.carve_sequence(t, a, p, keep=5)
    plain, sharded = jax.jit(cut)(tokens, attention, np.asarray(positions)), jax.jit(cut)(*split, positions)
    assert len(sharded.hidden.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded.kept, plain.kept)
    np.testing.assert_allclose(sharded.hidden, plain.hidden, rtol=1e-6)
    print("sharded over", jax.device_count())
"""


def test_sharding_the_batch_over_eight_devices_changes_nothing():
    assert "sharded over 8" in on_devices(8, textwrap.dedent(EIGHT_DEVICES))
