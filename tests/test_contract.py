"""One table of tests that every row of the registry passes, those of tomorrow too: `check`, and more."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.contract import ROWS, K, keep, limits
from tokencarve_jax import EVIDENCE, check
from tokencarve_jax.samples import LEADING, Batch, D, N

every_row = pytest.mark.parametrize("name", ROWS)
SETS = tuple(np.ndindex(*LEADING))


@functools.cache
def counted(name):
    """A row of the registry that writes down whenever it is traced, and the notes."""
    row, traces = ROWS[name], []

    @functools.wraps(row.select)
    def select(tokens, **rest):
        traces.append(tokens.values.shape)
        return row.select(tokens, **rest)

    return dataclasses.replace(row, select=select), traces


@functools.cache
def batch_of(names, seed=0):
    return Batch.uneven(np.random.default_rng(seed), names)


def batch(name, seed=0):
    return batch_of(ROWS[name].evidence, seed)


def shrink(name, of, wanted=K):
    left = counted(name)[0](of.tokens, keep=keep(name, wanted=wanted), **of.told)
    return jax.tree.map(np.asarray, left)


@functools.cache
def result(name):
    return shrink(name, batch(name))


def take(array, indices):
    return np.take_along_axis(
        array, indices.reshape(*indices.shape, *[1] * (array.ndim - indices.ndim)), indices.ndim - 1
    )


def standing(left):
    return (left.indices[..., None] == np.arange(N)).any(-2)


def bits(array):
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.dtype.itemsize}")


def equal(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b), strict=True), left, right)


def check_form(left, of, kept):
    """What holds for any result, whatever the method."""
    assert left.tokens.values.shape == (*of.valid.shape[:-1], kept, D)
    assert left.tokens.values.dtype == of.tokens.values.dtype
    assert (left.indices.dtype, left.indices.shape) == (np.int32, (*of.valid.shape[:-1], kept))
    assert (left.assignment.dtype, left.assignment.shape) == (np.int32, of.valid.shape)
    assert (left.tokens.valid.dtype, left.tokens.sizes.dtype) == (bool, np.float32)
    assert left.tokens.positions.dtype == np.int32
    assert (np.diff(left.indices, axis=-1) > 0).all()
    assert left.indices.min() >= 0
    assert left.indices.max() < N
    assert set(np.unique(left.assignment)) <= set(range(-1, kept))
    np.testing.assert_array_equal(
        take(left.assignment, left.indices), np.broadcast_to(np.arange(kept), left.indices.shape)
    )
    np.testing.assert_array_equal(left.tokens.positions, take(np.asarray(of.tokens.positions), left.indices))
    np.testing.assert_array_equal(left.tokens.valid, take(of.valid, left.indices))
    # Padding stands only where all valid tokens do, what is no number only where all others do.
    stands = standing(left)
    for better, worse in ((of.usable, of.valid & ~of.usable), (of.valid, ~of.valid)):
        assert (~(stands & worse).any(-1) | (stands | ~better).all(-1)).all()
    # They join nothing, and nothing joins them.
    joins = (left.assignment >= 0) & ~stands
    assert not (joins & ~of.usable).any()
    hosts = np.take_along_axis(left.indices, np.maximum(left.assignment, 0), -1)
    assert not (joins & ~np.take_along_axis(of.usable, hosts, -1)).any()


@every_row
def test_shapes_types_order_assignment_and_who_may_stand(name):
    left = result(name)
    check_form(left, batch(name), keep(name))
    assert np.isfinite(left.tokens.values[take(batch(name).usable, left.indices)]).all()


@every_row
def test_sizes_sum_to_the_originals_that_live_on(name):
    left, of = result(name), batch(name)
    sizes = np.asarray(of.tokens.sizes)
    expected = [[np.where(left.assignment[s] == row, sizes[s], 0).sum() for row in range(keep(name))] for s in SETS]
    np.testing.assert_array_equal(left.tokens.sizes, np.reshape(expected, left.indices.shape))


@every_row
def test_a_row_that_nothing_joined_is_bit_exact(name):
    left = result(name)
    alone = (left.assignment[..., None, :] == np.arange(keep(name))[:, None]).sum(-1) == 1
    same = (left.tokens.values == take(np.asarray(batch(name).tokens.values), left.indices)).all(-1)
    usable = take(batch(name).usable, left.indices)
    assert (same | ~alone | ~usable).all() or not limits(name).plain


@every_row
def test_it_is_deterministic_and_traced_once(name):
    first = result(name)
    shapes = counted(name)[1].count(batch(name).tokens.values.shape)
    equal(first, shrink(name, batch(name)))
    shrink(name, batch(name, seed=1))
    assert counted(name)[1].count(batch(name).tokens.values.shape) == shapes


@every_row
def test_it_keeps_the_contract(name):
    check(ROWS[name])


def test_one_key_is_shared_by_the_sets_of_a_batch():
    of, row, first = batch("zoo-prune"), ROWS["zoo-prune"], result("zoo-prune")
    for index in SETS:
        tokens, told = of.one(*index)
        alone = row(tokens, keep=K, **told)
        equal((first.indices[index], first.assignment[index]), (alone.indices, alone.assignment))


@every_row
def test_one_token_is_left_and_half_precision_stays(name):
    of = batch(name)
    of = of.replace(values=of.tokens.values.astype(jnp.bfloat16))
    check_form(shrink(name, of, wanted=1), of, keep(name, wanted=1))


@every_row
def test_it_refuses_less_than_its_least(name):
    least = keep(name, wanted=1)
    if least > 1:
        with pytest.raises(ValueError, match=str(least)):
            ROWS[name](batch(name).tokens, keep=least - 1, **batch(name).told)


@every_row
def test_all_tokens_are_the_identity(name):
    tokens, told = batch(name).tokens, batch(name).told
    tokens = dataclasses.replace(tokens, values=tokens.values.astype(jnp.bfloat16))
    for kept in (N, 1.0):
        left = ROWS[name](tokens, keep=kept, **told)
        equal(left.tokens, tokens)
        equal(left.indices, np.broadcast_to(np.arange(N, dtype=np.int32), tokens.shape))
        equal(left.assignment, left.indices)


@every_row
def test_a_fraction_is_a_count(name):
    of, kept = batch(name), keep(name)
    equal(result(name), counted(name)[0](of.tokens, keep=kept / N, **of.told))


# Not the ablations that differ from their method in a number alone.
@pytest.mark.parametrize("name", [name for name in ROWS if not name.endswith(("-only", "-no-merge", "-plus"))])
def test_gradients_are_finite(name):
    of = batch(name)

    @jax.jit
    def gradient(tokens, told):
        def loss(values):
            left = ROWS[name](dataclasses.replace(tokens, values=values), keep=keep(name), **told)
            return jnp.square(jnp.where(jnp.isfinite(left.tokens.values), left.tokens.values, 0)).sum()

        return jax.grad(loss)(tokens.values)

    gradients = np.asarray(gradient(of.tokens, of.told))
    assert np.isfinite(gradients).all()
    assert (gradients[0, 0] != 0).any()


@every_row
def test_it_takes_arrays_whose_split_is_part_of_their_type(name):
    """On a mesh with explicit axes: what is left is split as its tokens were. That values stay: test_careful.py."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))

    def split(array):
        spec = PartitionSpec() if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else PartitionSpec("data")
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    told = dict(batch(name).told)
    fixed = {"projector": told.pop("projector")} if "projector" in told else {}
    with jax.set_mesh(mesh):
        abstract = jax.tree.map(lambda array: split(jnp.asarray(array)), (batch(name).tokens, told))
        left = jax.eval_shape(lambda tokens, told: ROWS[name](tokens, keep=keep(name), **told, **fixed), *abstract)
    assert {array.sharding.spec[0] for array in jax.tree.leaves(left)} == {"data"}


@every_row
def test_it_exports_to_cpu_cuda_and_tpu(name):
    row = ROWS[name]
    tokens, told = batch(name).one(0, 0)
    arrays = {kind: value for kind, value in told.items() if kind != "projector"}
    fixed = {kind: value for kind, value in told.items() if kind == "projector"}
    shrink = jax.jit(lambda tokens, told: jax.tree.leaves(row(tokens, keep=keep(name), **told, **fixed)))
    leaves, tree = jax.tree.flatten((tokens, arrays))
    flat = jax.jit(lambda *leaves: shrink(*jax.tree.unflatten(tree, leaves)))
    exported = export.export(flat, platforms=("cpu", "cuda", "tpu"))(*leaves)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.out_avals[0].shape == (keep(name), D)


@every_row
def test_mistakes_are_told_in_one_message(name):
    row = ROWS[name]
    tokens, told = batch(name).one(0, 0)
    shrink = functools.partial(row, keep=keep(name))
    for kind in row.required:
        with pytest.raises(TypeError, match=rf"^{name} needs {kind}\b.*got none$"):
            shrink(tokens, **{other: value for other, value in told.items() if other != kind})
    stranger = next(kind for kind in EVIDENCE if kind not in row.evidence)
    for unknown in (stranger, "charm"):
        with pytest.raises(TypeError, match=rf"^{name} takes no {unknown}; it takes "):
            shrink(tokens, **told, **{unknown: jnp.ones(N)})
    for kind in row.evidence:
        if EVIDENCE[kind]:
            others = {letter for other in row.evidence if other != kind for letter in EVIDENCE[other]}
            known = {"N", *({"D"} if row.at != "tower" else ()), *({"T"} & others)}
            axes = [axis for axis, letter in enumerate(EVIDENCE[kind]) if letter in known]
            for wrong in (told[kind][None], *(np.delete(told[kind], 0, axis) for axis in axes)):
                with pytest.raises(ValueError, match=rf"^{name}: \w+ must be \[.*got \["):
                    shrink(tokens, **{**told, kind: wrong})
    with pytest.raises(TypeError, match=r"takes Tokens, got .*Tokens\.of\(values\)"):
        shrink(tokens.values, **told)
    for kept in (0, N + 1, 0.0, 1.5, -1):
        with pytest.raises(ValueError, match="keep"):
            row(tokens, keep=kept, **told)
    with pytest.raises(TypeError, match="cannot be traced"):
        jax.jit(lambda kept: row(tokens, keep=kept, **told).indices)(3)
