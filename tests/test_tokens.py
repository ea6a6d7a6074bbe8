"""`gather`, `rows` and `rows_of` against float64 NumPy, and what `Tokens.of` refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokencarve_jax import Selection, Tokens, gather
from tokencarve_jax.tokens import rows, rows_of


def gathered(tokens, indices, assignment, weights=None, own=None):
    """One set, in loops: values, sizes and the assignment that is left."""
    values, sizes = np.asarray(tokens.values, np.float64), np.asarray(tokens.sizes, np.float64)
    counts = np.asarray(tokens.valid) & np.isfinite(values).all(-1)
    left, total, full = [], [], [-1] * len(counts)
    for row, i in enumerate(indices):
        full[i] = row
        members = [n for n in range(len(counts)) if n == i or (assignment[n] == row and counts[n] and counts[i])]
        for n in members:
            full[n] = row
        share = {n: float((sizes if weights is None else weights)[n]) for n in members}
        plain = len(members) == 1 or sum(share.values()) <= 0
        mean = values[i] if plain else sum(share[n] * values[n] for n in members) / sum(share.values())
        left.append(mean if own is None else own[row])
        total.append(sum(sizes[n] for n in members))
    return np.array(left), total, full


def case(seed, n=13, d=5, k=4):
    """Tokens with padding and numbers that are none among hosts and members, and a decision about them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, d)).astype(np.float32)
    values[rng.integers(n), 2] = np.nan
    values[rng.integers(n)] = -np.inf
    tokens = Tokens.of(
        values, valid=rng.random(n) < 0.8, sizes=rng.integers(1, 5, n), positions=rng.integers(0, 99, (n, 3))
    )
    indices = np.sort(rng.permutation(n)[:k]).astype(np.int32)
    assignment = rng.integers(-1, k, n).astype(np.int32)
    assignment[indices] = np.arange(k)
    return tokens, indices, assignment, rng


@pytest.mark.parametrize("kind", ["sizes", "weights", "zero weights", "values"])
@pytest.mark.parametrize("seed", range(15))
def test_groups_become_means_and_nothing_joins_what_is_no_number(kind, seed):
    tokens, indices, assignment, rng = case(seed)
    weights = {"weights": rng.random(13), "zero weights": np.zeros(13)}.get(kind)
    own = rng.normal(size=(4, 5)) if kind == "values" else None
    left = gather(
        tokens,
        Selection(
            jnp.asarray(indices),
            jnp.asarray(assignment),
            weights=None if weights is None else jnp.asarray(weights, jnp.float32),
            values=None if own is None else jnp.asarray(own, jnp.float32),
        ),
    )
    values, sizes, full = gathered(tokens, indices, assignment, weights, own)
    np.testing.assert_allclose(left.tokens.values, values, rtol=1e-5, atol=1e-6)
    assert left.tokens.sizes.tolist() == sizes
    assert left.assignment.tolist() == full
    np.testing.assert_array_equal(left.tokens.positions, np.asarray(tokens.positions)[indices])
    np.testing.assert_array_equal(left.tokens.valid, np.asarray(tokens.valid)[indices])
    alone = np.array([full.count(row) == 1 for row in range(4)])
    if own is None:
        np.testing.assert_array_equal(left.tokens.values[alone], tokens.values[indices[alone]])


def test_pruning_alone_moves_rows_bit_for_bit():
    tokens, indices, _, _ = case(0)
    left = gather(tokens, Selection(jnp.asarray(indices)))
    np.testing.assert_array_equal(left.tokens.values, np.asarray(tokens.values)[indices])
    np.testing.assert_array_equal(left.tokens.sizes, np.asarray(tokens.sizes)[indices])
    np.testing.assert_array_equal(left.assignment, rows_of(jnp.asarray(indices), 13))


def test_half_precision_is_averaged_in_full_and_float64_stays():
    values = jnp.array([[1.0], [1.0078125], [1.0078125]], jnp.bfloat16)  # neighbours in bfloat16
    left = gather(Tokens.of(values, sizes=[1, 100, 100]), Selection(jnp.array([0]), jnp.zeros(3, jnp.int32)))
    assert left.tokens.values.dtype == jnp.bfloat16
    assert float(left.tokens.values[0, 0]) == 1.0078125
    with jax.enable_x64(True):
        tokens = Tokens.of(np.array([[1.0], [1 + 1e-12]]))
        left = gather(tokens, Selection(jnp.array([0]), jnp.zeros(2, jnp.int32)))
        assert float(left.tokens.values[0, 0]) == 1 + 5e-13


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
@pytest.mark.parametrize("rest", [(), (5,), (2, 3)])
def test_rows_takes_whatever_is_aligned(leading, rest):
    rng = np.random.default_rng(0)
    array, indices = rng.normal(size=(*leading, 9, *rest)), rng.integers(0, 9, (*leading, 4))
    taken = np.asarray(rows(jnp.asarray(array), jnp.asarray(indices)))
    assert taken.shape == (*leading, 4, *rest)
    for place in np.ndindex(*leading):
        np.testing.assert_array_equal(taken[place], array.astype(np.float32)[place][indices[place]])


def test_rows_of_is_the_inverse_of_indices():
    indices = np.array([[0, 3, 4], [1, 2, 6]])
    assert rows_of(jnp.asarray(indices), 7).tolist() == [[0, -1, -1, 1, 2, -1, -1], [-1, 0, 1, -1, -1, -1, 2]]
    assert rows_of(jnp.asarray(indices), 7).dtype == jnp.int32


def test_tokens_of_says_what_is_wrong():
    values = np.ones((2, 5, 3), np.float32)
    for wrong, message in (
        ({"values": np.ones((2, 5, 3), int)}, "values must be floating, got int"),
        ({"positions": np.zeros(5)}, "positions must be integers, got float32"),
    ):
        with pytest.raises(TypeError, match=message):
            Tokens.of(**{"values": values, **wrong})
    for wrong, message in (
        ({"values": np.ones(5, np.float32)}, r"values must be \[\.\.\., N, D\], got shape \(5,\)"),
        ({"valid": np.ones(5, bool)}, r"valid must have shape \(2, 5\), one entry per token, got \(5,\)"),
        ({"sizes": np.ones((2, 4))}, r"sizes must have shape \(2, 5\), one entry per token, got \(2, 4\)"),
        ({"positions": np.zeros((2, 4, 3), int)}, r"positions must have shape \(2, 5\).*got \(2, 4\)"),
        ({"positions": np.zeros(4, int)}, r"positions must have shape \(2, 5\).*got \(4,\)"),
        ({"positions": np.zeros((5, 3), int)}, r"positions must have shape \(2, 5\).*got \(5, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokens.of(**{"values": values, **wrong})


def test_tokens_of_fills_in_the_rest():
    tokens = Tokens.of(np.ones((2, 5, 3), np.float16), positions=np.arange(5, dtype=np.int16) + 4)
    assert (tokens.shape, tokens.values.dtype, tokens.valid.all()) == ((2, 5), jnp.float16, True)
    assert tokens.positions.tolist() == [[[4], [5], [6], [7], [8]]] * 2
    assert (tokens.positions.dtype, tokens.sizes.dtype) == (jnp.int32, jnp.float32)
    assert Tokens.of(np.ones((5, 3)), positions=np.ones((5, 3), int)).positions.shape == (5, 3)
