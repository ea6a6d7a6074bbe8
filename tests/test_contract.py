"""One table of tests that every row of the registry passes, those of tomorrow too."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tests.contract import EVIDENCE, LEADING, ROWS, D, K, N, keep, limits, make_batch, make_evidence
from tokencarve_jax import Tokens

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
    return make_batch(names, seed)


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
def test_padding_has_no_influence(name):
    of, first = batch(name), result(name)
    other = shrink(name, of.with_garbage(~of.valid, np.random.default_rng(1)))
    check_same_where(take(of.valid, first.indices), first, other)


def check_same_where(counts, first, other):
    equal((first.indices, first.assignment, first.tokens.valid), (other.indices, other.assignment, other.tokens.valid))
    for ours, theirs in zip(jax.tree.leaves(first.tokens), jax.tree.leaves(other.tokens), strict=True):
        np.testing.assert_array_equal(ours[counts], theirs[counts])


@every_row
def test_what_is_no_number_counts_as_padding_where_enough_others_exist(name):
    of, first = batch(name), result(name)
    tokens = dataclasses.replace(of.tokens, valid=jnp.asarray(of.usable))
    other = shrink(name, of.replace(tokens=tokens))
    enough = of.usable.sum(-1) >= keep(name)
    assert (enough & (of.usable != of.valid).any(-1)).any()
    first, other = (jax.tree.map(lambda array: array[enough], left) for left in (first, other))
    check_same_where(np.ones_like(first.indices, bool), first, other)


@every_row
def test_text_that_is_not_valid_has_no_influence(name):
    of = batch(name)
    about_text = [kind for kind in of.told if "T" in EVIDENCE[kind] and kind != "text_valid"]
    if "text_valid" not in of.told or not about_text:
        return
    told = dict(of.told)
    for kind in about_text:
        told[kind] = np.where(told["text_valid"][..., None], told[kind], np.nan)
    equal(result(name), shrink(name, of.replace(told=told)))


@every_row
def test_a_batch_equals_a_loop_and_vmap(name):
    of, row = batch(name), counted(name)[0]
    first = result(name)
    if not limits(name).alone:
        return
    for index in SETS:
        tokens, told = of.one(*index)
        close(jax.tree.map(lambda array, index=index: array[index], first), row(tokens, keep=keep(name), **told))
    axes = {kind: 0 if EVIDENCE[kind] else None for kind in of.told}
    mapped = lambda tokens, told: row(tokens, keep=keep(name), **told)  # noqa: E731
    for _ in LEADING:
        mapped = jax.vmap(mapped, in_axes=(0, axes))
    close(first, jax.jit(mapped)(of.tokens, of.told))


def close(left, right):
    equal((left.indices, left.assignment), (right.indices, right.assignment))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), left.tokens, right.tokens)


@every_row
def test_half_precision_stays(name):
    of = batch(name)
    tokens = dataclasses.replace(of.tokens, values=of.tokens.values.astype(jnp.bfloat16))
    of = of.replace(tokens=tokens)
    check_form(shrink(name, of), of, keep(name))


@every_row
def test_one_token_is_left(name):
    of = batch(name)
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


@every_row
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
def test_positions_of_three_axes_and_no_more_evidence_than_it_needs(name):
    row = ROWS[name]
    told = make_evidence(np.random.default_rng(0), row.required, (2,), n=40)
    tokens = Tokens.of(np.ones((2, 40, D), np.float32), positions=np.zeros((2, 40, 3), int))
    left = jax.eval_shape(lambda tokens, told: row(tokens, keep=keep(name, n=40), **told), tokens, told)
    assert left.tokens.positions.shape == (2, keep(name, n=40), 3)


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
