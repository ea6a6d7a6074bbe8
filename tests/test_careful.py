"""Settings that careful users have on, and numbers at the end of a dtype's range."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc
from tests.devices import on_devices
from tokencarve_jax.samples import Batch

STRICT = {
    "rank": lambda: jax.numpy_rank_promotion("raise"),
    "dtype": lambda: jax.numpy_dtype_promotion("strict"),
    "guard": lambda: jax.transfer_guard("disallow"),
}


def everything(hidden, attention, is_image):
    """A cut between two layers, with all that is around it, and every route to the score."""
    keys = hidden[..., None, :8]
    row = tc.last_query_attention(keys[:, -1], keys, mask=attention > 0, window=50, softcap=3.0)
    positions = tc.visual_positions(is_image, count=140)
    cuts = [tc.carve_sequence(hidden, row, positions, keep=30, information=route) for route in ("svd", "norm")]
    cuts += [tc.carve_sequence(hidden, attention, positions, keep=0.25, debias=True, features=hidden)]
    cuts += [tc.compress_sequence(hidden, positions, "fastv", keep=9, query_attention=row)]
    return cuts, [(cut.take(jnp.arange(160), axis=0), cut.shorten([hidden], axis=1, room=3)) for cut in cuts]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("strict", STRICT)
def test_a_cut_runs_under_strict_settings(strict, dtype):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 160, 150)), dtype)
    arguments = (hidden, jnp.asarray(rng.random((2, 160)), jnp.float32), jnp.arange(160) + jnp.zeros((2, 1)) < 140)
    expected = jax.eval_shape(everything, *arguments)
    compiled = jax.jit(everything)
    with STRICT[strict]():
        if strict == "guard":
            compiled(*arguments)
        assert jax.eval_shape(everything, *arguments) == expected


@pytest.mark.parametrize("name", tc.COMPRESSORS)
def test_every_method_is_traced_under_strict_settings(name):
    row = tc.COMPRESSORS[name]
    for dtype in (jnp.float32, jnp.bfloat16):
        of = Batch.uneven(np.random.default_rng(0), row.evidence)
        of = of.replace(values=np.asarray(of.tokens.values).astype(dtype))
        for strict in STRICT.values():
            projector = {kind: value for kind, value in of.told.items() if kind == "projector"}
            projector = dict.fromkeys(projector, jax.tree_util.Partial(jnp.tanh))
            told = {kind: value for kind, value in of.told.items() if kind not in projector}
            with strict():
                jax.eval_shape(
                    lambda tokens, told, more=projector: row(tokens, keep=17, **told, **more), of.tokens, told
                )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_mean_of_the_largest_numbers_is_one_of_them(dtype):
    largest = float(jnp.finfo(dtype).max)
    tokens = jnp.full((6, 4), largest, dtype).at[3:].multiply(-1)
    attention = jnp.array([0.3, 0.1, 0.2, 0.3, 0.1, 0.2])
    carved = tc.carve(jnp.abs(tokens), attention, keep=4)
    assert len(set(carved.assignment.tolist()) - {-1}) < (carved.assignment >= 0).sum()  # some merged
    assert (carved.tokens.astype(jnp.float32) == largest).all()
    row = jnp.array([0, 0, 0, 1, 1, 1])
    left = tc.gather(tc.Tokens.of(tokens, sizes=jnp.arange(6) + 1), tc.Selection(jnp.array([0, 3]), row))
    np.testing.assert_array_equal(
        np.asarray(left.tokens.values, np.float32), np.float32([[largest] * 4, [-largest] * 4])
    )


@pytest.mark.parametrize("name", ["prumerge", "prumerge-plus", "visionzip"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_sums_of_the_largest_numbers_are_finite(name, dtype):
    told = {"class_attention": jnp.ones(20) / 20, "tower_keys": jnp.ones((20, 3))}
    tokens = tc.Tokens.of(jnp.full((20, 4), jnp.finfo(dtype).max, dtype))
    left = tc.COMPRESSORS[name](tokens, keep=8, **told).tokens.values
    assert jnp.isfinite(left).all()
    assert (left == jnp.finfo(dtype).max).any()


@pytest.mark.parametrize("name", tc.COMPRESSORS)
def test_an_empty_batch_goes_through(name):
    row = tc.COMPRESSORS[name]
    of = Batch.clean(np.random.default_rng(0), row.evidence)
    told = {kind: value[:0] if tc.EVIDENCE[kind] else value for kind, value in of.told.items()}
    left = row(jax.tree.map(lambda array: jnp.asarray(array[:0]), of.tokens), keep=17, **told)
    assert left.tokens.values.shape == (0, 3, 17, 24)


EXPLICIT = """
    import jax, numpy as np
    import jax.numpy as jnp
    from jax.sharding import AxisType, PartitionSpec as P
    import tokencarve_jax as tc

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    rng = np.random.default_rng(0)
    tokens, attention = rng.normal(size=(8, 150, 140)).astype("float32"), rng.random((8, 150)).astype("float32")
    plain = tc.carve(tokens, attention, keep=30)
    with jax.set_mesh(mesh):
        split = [jax.device_put(array, P("data")) for array in (tokens, attention)]
        for carve in (tc.carve, jax.jit(tc.carve, static_argnames="keep")):
            carved = carve(*split, keep=30)
            np.testing.assert_array_equal(carved.indices, plain.indices)
            np.testing.assert_allclose(carved.tokens, plain.tokens, rtol=1e-5, atol=1e-6)
            assert len(carved.tokens.sharding.device_set) == 4
        places = jnp.arange(4, 144) + jnp.zeros((8, 1), int)
        places = jax.device_put(places, P("data"))
        cut = jax.jit(lambda *a: tc.compress_sequence(*a, "fastv", keep=30, query_attention=split[1]))(split[0], places)
        short = cut.shorten(split[0], axis=1, room=2)
    for name in ("fastv", "divprune", "pooling", "random"):
        method, told = tc.COMPRESSORS[name], {"key": jax.random.key(0), "query_attention": attention}
        told = {kind: told[kind] for kind in method.evidence if kind in told}
        want = method(tc.Tokens.of(tokens), keep=30, **told)
        with jax.set_mesh(mesh):
            if "query_attention" in told:
                told["query_attention"] = split[1]
            left = method(tc.Tokens.of(split[0]), keep=30, **told)
        np.testing.assert_array_equal(left.indices, want.indices)
        np.testing.assert_allclose(left.tokens.values, want.tokens.values, rtol=1e-5, atol=1e-6)
    want = tc.compress_sequence(tokens, np.arange(4, 144), "fastv", keep=30, query_attention=attention)
    np.testing.assert_array_equal(cut.kept, want.kept)
    assert short.shape == (8, 42, 140) and len(short.sharding.device_set) == 4
    print("explicit over", jax.device_count())
"""


def test_methods_under_a_mesh_with_explicit_axes():
    assert "explicit over 4" in on_devices(4, textwrap.dedent(EXPLICIT))
