"""`CarvedSequence.take` and `.shorten`: what is aligned with the sequence follows the cut."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import tokencarve_jax as tc
from tests.devices import on_devices

S, B, L, K, D = 23, 3, 4, 2, 5
RNG = np.random.default_rng(0)
# Rows with their visual tokens at different places, in another order, and one with text between them.
VISUAL = np.stack([np.arange(2, 15), np.arange(20, 7, -1), [*range(3, 9), *range(12, 19)]]).astype(np.int32)
HIDDEN = RNG.normal(size=(B, S, 7)).astype(np.float32)
ATTENTION = RNG.random((B, S)).astype(np.float32)


@pytest.fixture(scope="module", name="cut")
def _cut():
    return tc.carve_sequence(HIDDEN, ATTENTION, VISUAL, keep=4)


@pytest.fixture(scope="module", name="alone")
def _alone():
    return [tc.carve_sequence(HIDDEN[b], ATTENTION[b], VISUAL[b], keep=4) for b in range(B)]


def by_hand(array, cut, axes, batch):
    """Row by row and place by place, in plain loops."""
    rows = []
    for b in range(B):
        row = array if batch is None else np.moveaxis(array, batch, 0)[b]
        for axis in axes:
            if batch is not None:
                axis -= axis > batch
            row = np.stack([np.moveaxis(row, axis, 0)[s] for s in np.asarray(cut.kept)[b].tolist()], axis=axis)
        rows.append(row)
    return np.stack(rows, axis=batch or 0)


CASES = {
    "positions": ((B, S), 1, 0),
    "positions of M-RoPE": ((3, B, S), 2, 1),
    "positions of M-RoPE, from the end": ((3, B, S), -1, -2),
    "shared positions": ((S,), 0, None),
    "shared positions of M-RoPE": ((3, S), -1, None),
    "shared mask": ((S, S), (0, 1), None),
    "mask": ((B, S, S), (1, 2), 0),
    "mask with heads": ((B, 1, S, S), (-1, -2), 0),
    "cache": ((B, S, K, D), 1, 0),
    "cache, head first": ((B, K, S, D), 2, 0),
    "cache, sequence first": ((S, B, K, D), 0, 1),
    "stacked, batch first": ((B, L, S, K, D), 2, 0),
    "stacked, layer first": ((L, B, S, K, D), 2, 1),
    "batch last": ((S, K, B), 0, -1),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
@pytest.mark.parametrize(("shape", "axis", "batch"), CASES.values(), ids=CASES)
def test_take_is_the_plain_loop(cut, shape, axis, batch, dtype):
    values = RNG.integers(2 if dtype == "bool" else 100, size=shape)
    array = jnp.asarray(values, dtype)
    axes = tuple(a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,)))
    expected = by_hand(np.asarray(values), cut, axes, batch if batch is None else batch % len(shape))
    out = cut.take(array, axis=axis, batch=batch)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.astype(jnp.float32), expected.astype(np.float32))
    traced = jax.jit(lambda cut, array: cut.take(array, axis=axis, batch=batch))(cut, array)
    np.testing.assert_array_equal(traced, out)


@pytest.mark.parametrize("name", ["positions", "mask", "cache", "shared mask", "stacked, batch first"])
def test_without_a_batch_and_under_vmap(cut, alone, name):
    shape, axis, batch = CASES[name]
    array = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    together = cut.take(array, axis=axis, batch=batch)
    if batch is not None:
        axis = tuple(a - 1 for a in axis) if isinstance(axis, tuple) else axis - 1
    mapped = jax.vmap(lambda cut, row: cut.take(row, axis=axis), in_axes=(0, batch))(cut, array)
    np.testing.assert_array_equal(mapped, together)
    for b, one in enumerate(alone):
        row = array if batch is None else array[b]
        for ignored in (0, 1, None):
            np.testing.assert_array_equal(one.take(row, axis=axis, batch=ignored), together[b])


def test_shorten_gathers_every_leaf_and_leaves_room(cut, alone):
    layer = {"k": RNG.normal(size=(B, S, K, D)).astype(np.float32), "v": RNG.integers(9, size=(B, S, K)), "none": None}
    caches = [layer, (jnp.asarray(layer["k"], jnp.bfloat16),), jnp.ones((B, S), bool)]
    kept = cut.kept.shape[1]
    out = cut.shorten(caches, axis=1, room=np.int64(3))
    jitted = jax.jit(lambda cut, caches: cut.shorten(caches, axis=1, room=3))(cut, caches)
    assert jax.tree.structure(out) == jax.tree.structure(caches)
    for before, after, traced in zip(*map(jax.tree.leaves, (caches, out, jitted)), strict=True):
        assert after.dtype == jnp.asarray(before).dtype
        assert after.shape == (B, kept + 3, *before.shape[2:])
        expected = by_hand(np.asarray(before), cut, (1,), 0)
        np.testing.assert_array_equal(after[:, :kept].astype(jnp.float32), expected.astype(np.float32))
        assert not after[:, kept:].any()
        np.testing.assert_array_equal(after, traced)
    jax.tree.map(
        lambda plain, own: np.testing.assert_array_equal(plain[:, :kept], own),
        out,
        cut.shorten(caches, axis=1),
    )
    for b in range(B):
        rows = jax.tree.map(lambda leaf, b=b: leaf[b], (caches, out))
        jax.tree.map(np.testing.assert_array_equal, alone[b].shorten(rows[0], axis=0, room=3), rows[1])


@pytest.mark.parametrize(
    ("shape", "axis", "batch"),
    [
        ((L, B, S, K, D), 2, 1),
        ((L, B, S, K, D), -3, -4),
        ((S, B), 0, 1),
        ((S,), 0, None),
        ((S,), -1, None),
        ((3, S), 1, None),
    ],
)
def test_room_is_made_along_the_sequence(cut, shape, axis, batch):
    array = RNG.normal(size=shape).astype(np.float32)
    short = cut.take(array, axis=axis, batch=batch)
    along = axis if axis < 0 else axis + (batch is None)
    np.testing.assert_array_equal(
        cut.shorten(array, axis=axis, batch=batch, room=2),
        np.concatenate([short, np.zeros_like(np.take(short, [0, 0], axis=along))], axis=along),
    )


def test_two_cuts_one_after_the_other(cut):
    positions = np.broadcast_to(np.arange(S, dtype=np.int32), (B, S))
    visual = np.stack([np.flatnonzero(np.isin(cut.kept[b], VISUAL[b])) for b in range(B)])
    second = tc.carve_sequence(cut.hidden, np.ones(cut.kept.shape, np.float32), visual, keep=2)
    assert second.length == cut.kept.shape[1]
    both = second.take(cut.take(positions, axis=1), axis=1)
    np.testing.assert_array_equal(both, np.take_along_axis(np.asarray(cut.kept), np.asarray(second.kept), 1))
    with pytest.raises(ValueError, match="uncut sequence of 14"):  # the first cut was forgotten
        second.take(positions, axis=1)


def test_the_length_counts_every_image():
    positions = np.stack([np.arange(2, 8), np.arange(9, 15)])[None]
    cut = tc.carve_sequence(HIDDEN[:1], ATTENTION[:1], positions, keep=2)
    assert (cut.length, cut.kept.shape) == (S, (1, S - 12 + 4))
    assert cut.take(np.arange(S), axis=0, batch=None).tolist() == cut.kept.tolist()


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((B, S - 1), {"axis": 1}, "axis 1 must be the uncut sequence of 23, got shape"),
        ((B, S + 4), {"axis": 1}, "slice off first"),
        ((B + 1, S), {"axis": 1}, "axis 0 must be the batch of 3"),
        ((1, S), {"axis": 1}, "axis 0 must be the batch of 3"),
        ((3, S, S), {"axis": (1, 1)}, "not distinct"),
        ((S, S), {"axis": (0, 1)}, "not distinct"),
        ((S, B), {"axis": 0}, "not distinct"),
        ((S, S), {"axis": -2, "batch": 0}, "not distinct"),
        ((B, S), {"axis": 2}, "no axis 2"),
        ((B, S), {"axis": -3}, "no axis -3"),
        ((B, S), {"axis": 1, "batch": 2}, "no axis 2"),
        ((), {"axis": 0}, "no axis 0"),
    ],
)
def test_arrays_that_do_not_fit(cut, shape, options, says):
    with pytest.raises(ValueError, match=says):
        cut.take(np.ones(shape, np.float32), **options)


def test_shorten_says_which_array_does_not_fit(cut):
    cache = [{"k": np.ones((B, S, K, D)), "end": np.zeros(B, np.int32)}]
    with pytest.raises(ValueError, match=r"cache_tree\[0\]\['end'\]: there is no axis 1"):
        cut.shorten(cache, axis=1)
    with pytest.raises(ValueError, match="room must be 0 or more"):
        cut.shorten([], axis=1, room=-1)
    for room in (True, 1.0, jnp.int32(1)):
        with pytest.raises(TypeError, match="room must be an int"):
            cut.shorten([], axis=1, room=room)


def test_more_batches_than_one_belong_under_vmap():
    stack = jax.vmap(lambda h: tc.carve_sequence(h, ATTENTION, VISUAL, keep=4))(np.stack([HIDDEN, -HIDDEN]))
    assert stack.length == S
    with pytest.raises(ValueError, match="inside vmap"):
        stack.take(np.ones((2, B, S)), axis=2)
    inside = jax.vmap(lambda cut: cut.take(np.arange(S), axis=0, batch=None))(stack)
    np.testing.assert_array_equal(inside, stack.kept)


def step(query, keys, hidden, is_image, mask, cache):
    """All of it: positions from a mask, a windowed and capped row, the cut, a mask and a stacked cache."""
    visual, valid = tc.visual_positions(is_image, count=9)
    attention = tc.last_query_attention(query, keys, mask=mask, window=20, softcap=5.0)
    cut = tc.carve_sequence(hidden, attention, visual, keep=4, valid=valid)
    return cut, cut.take(mask, axis=1), cut.shorten(cache, axis=2, batch=1, room=2)


def arguments(batch, seed=0):
    rng = np.random.default_rng(seed)
    images = np.zeros((batch, S), bool)
    for b in range(batch):
        images[b, 3 : 3 + 9 - b % 3] = True
    mask = np.arange(S) < S - np.arange(batch)[:, None] % 3
    shapes = (batch, 6, 8), (batch, S, 2, 8), (batch, S, 7)
    query, keys, hidden = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return query, keys, hidden, images, mask, (rng.normal(size=(L, batch, S, 2, 8)).astype(np.float32),) * 2


def test_exports_to_every_platform_and_runs():
    platforms = ("cpu", "cuda", "tpu")
    exported = export.export(jax.jit(step), platforms=platforms)(*arguments(B))
    assert exported.platforms == platforms
    # A pytree that export does not know goes in and out flat: the exported call gives the leaves' values.
    flat = export.export(jax.jit(lambda *a: jax.tree.leaves(step(*a))))(*arguments(B))
    for ours, theirs in zip(jax.tree.leaves(step(*arguments(B))), flat.call(*arguments(B)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_values_never_retrace():
    traces = []

    @jax.jit
    def traced(*args):
        traces.append(1)
        return step(*args)

    for seed in range(3):
        traced(*arguments(B, seed))
    assert len(traces) == 1


def test_inside_scan_and_grad():
    query, keys, hidden, images, mask, cache = arguments(B)

    def loss(hidden, cache):
        def body(total, layer):
            short = step(query, keys, hidden, images, mask, layer[None])[2]
            return total + (short**2).sum(), short

        total, _ = jax.lax.scan(body, 0.0, cache)
        return total

    gradient = jax.jit(jax.grad(loss, argnums=1))(hidden, cache[0])
    cut = step(query, keys, hidden, images, mask, cache)[0]
    expected = np.zeros_like(cache[0])
    for b in range(B):
        expected[:, b, np.asarray(cut.kept)[b]] = 2 * cache[0][:, b, np.asarray(cut.kept)[b]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


EIGHT_DEVICES = """
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from tests.test_carve_take import arguments, step

    assert jax.device_count() == 8, jax.devices()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    specs = (*[P("data")] * 5, P(None, "data"))
    args = arguments(16)
    plain = jax.jit(step)(*args)
    split = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(args, specs)]
    out_specs = (P("data"), P("data"), P(None, "data"))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=out_specs)
    for sharded in (jax.jit(step)(*split), jax.jit(mapped)(*split), step(*split)):
        for ours, theirs in zip(jax.tree.leaves(sharded), jax.tree.leaves(plain), strict=True):
            assert len(ours.sharding.device_set) == 8
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    text = jax.jit(step).lower(*split).compile().as_text()
    assert "all-gather" not in text, "a row left its device"
    print("sharded over", jax.device_count())
"""


def test_sharding_the_batch_over_eight_devices_moves_nothing_and_changes_nothing():
    assert "sharded over 8" in on_devices(8, textwrap.dedent(EIGHT_DEVICES))
