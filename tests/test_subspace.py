"""The route of matrix products: its parts against float64, what it chooses, and what it never calls."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc
from experiments.studies.information_routes import chosen
from experiments.studies.score_matrices import of_low_rank
from tests import oracle
from tokencarve_jax.scores import subspace
from tokencarve_jax.scores.information import SEARCH
from tokencarve_jax.scores.spectrum import dominating_directions

contribution = jax.jit(functools.partial(tc.information_contribution, method="subspace"))
KEEP = 0.222
N = 576


def same(tokens, seed):
    """The share of the tokens that float64 keeps, with attention at random."""
    attention = jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(len(tokens))), jnp.float32)
    rows = jnp.asarray(tokens, jnp.float32)
    wanted = chosen(rows, attention, oracle.information(np.asarray(rows)), KEEP)
    found = chosen(rows, attention, np.asarray(contribution(rows), np.float64), KEEP)
    return len(wanted & found) / len(wanted)


def fair(width):
    """Matrices that leave little to estimate."""
    rng = np.random.default_rng(width)
    yield "decay 1/j", oracle.decaying(rng, N, width, power=1.0)
    yield "decay 1/j^2", oracle.decaying(rng, N, width, power=2.0)
    for noise in (0.01, 0.03, 0.1):
        yield f"low rank, noise of {noise}", of_low_rank(N, width, noise, rng)


def real():
    """What attention adds in two layers of real models, as `experiments.studies.real_states` reads them.

    The 320 leading principal coordinates U S, eight steps to a standard deviation. The score is that of any rotation of
    them: once with fewer columns than rows, once with more.
    """
    with np.load(Path(__file__).with_name("real_states.npz")) as arrays:
        for name in [name for name in arrays if not name.endswith("scales")]:
            tokens = arrays[name] * arrays[f"{name}, scales"]
            for width in (320, 640):
                rotation = np.linalg.qr(np.random.default_rng(width).normal(size=(width, 320)))[0].T
                yield f"{name}, {width} columns", (tokens @ rotation).astype(np.float32)


def test_the_best_tokens_of_what_attention_adds_in_real_models():
    """99 % of float64's on average and 97 % each."""
    shares = {}
    for name, tokens in real():
        count = tc.plan(len(tokens), KEEP).kept
        wanted, found = (
            set(np.argsort(-np.asarray(score))[:count].tolist())
            for score in (oracle.information(tokens), contribution(tokens))
        )
        shares[name] = len(wanted & found) / count
    assert len(shares) == 4
    assert np.mean([*shares.values()]) >= 0.99, shares
    assert min(shares.values()) >= 0.97, shares


def test_chooses_what_float64_does():
    shares = {}
    for width in (1024, 320):
        for kind, tokens in fair(width):
            shares.setdefault(kind, []).append(same(tokens, width))
    means = {kind: np.mean(found) for kind, found in shares.items()}
    noisy = [means.pop(kind) for kind in list(means) if kind.startswith("low rank")]  # float32 alone costs up to 2 %
    assert min(noisy) >= 0.95, noisy
    assert np.mean(noisy) >= 0.98, noisy
    assert min(means.values()) >= 0.98, means
    assert np.mean([*means.values(), np.mean(noisy)]) >= 0.99, means


@pytest.mark.parametrize(("n", "d"), [(400, 480), (480, 400)])
def test_leading_directions_and_the_expected_rest(n, d):
    tokens = oracle.decaying(np.random.default_rng(0), n, d, power=1.0)
    exact = np.linalg.svd(np.asarray(tokens, np.float64), compute_uv=False)
    side = np.asarray(tokens if n < d else tokens.T, np.float64)
    gram = side @ side.T
    along, values = subspace.leading(jnp.asarray(gram, jnp.float32))
    units = along / np.sqrt(values)
    np.testing.assert_allclose(units.T @ units, np.eye(subspace.LEADING), atol=0.02)  # values of 1 to 1/40,000
    np.testing.assert_allclose(units[:, -30:].T @ units[:, -30:], np.eye(30), atol=1e-3)
    # What float32 leaves of the approximation, and what that leaves of the exact ones.
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=len(gram))[:, None]
    basis, _ = np.linalg.qr(gram @ (signs * np.resize(np.eye(subspace.SOUGHT), (len(gram), subspace.SOUGHT))))
    product = gram @ basis
    nystrom = np.linalg.eigvalsh(product @ np.linalg.solve(basis.T @ product, product.T))[::-1]
    np.testing.assert_allclose(values[::-1][:60], nystrom[:60], rtol=1e-3)
    np.testing.assert_allclose(values[::-1], nystrom[: subspace.LEADING], rtol=1e-2, atol=1e-6 * values[-1])
    np.testing.assert_allclose(np.sqrt(values[::-1][:60]), exact[:60], rtol=1e-3)
    assert (np.diag(gram) - np.square(along).sum(-1) > -1e-6 * values[-1]).all()
    np.testing.assert_allclose(contribution(tokens), oracle.information(tokens), rtol=0.2)


def test_what_dwarfs_the_rest_is_found_first():
    """A massive token, a common mean, a massive channel, and nothing where there is none."""
    rng = np.random.default_rng(1)
    tokens = oracle.decaying(rng, N, 1024, power=0.3, spread=0.1)
    token, mean, channel = tokens.copy(), tokens.copy(), tokens.copy()
    token[7] *= 1000
    mean += 3 * rng.normal(size=1024).astype(np.float32)
    channel[:, 5] += 30
    for matrix, found in ((token, 1), (mean, 1), (channel, 1), (tokens, 0)):
        _, along = dominating_directions(jnp.asarray(matrix), **SEARCH)
        assert (np.asarray(along) != 0).any(0).sum() == found


def test_a_rest_of_equal_singular_values_is_estimated_without_bias():
    """64 strong directions and 512 equal ones, rotated at random: |u_ij| has the mean of a normal variable."""
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(N, N)))[0] for _ in range(2))
    values = np.concatenate([np.linspace(40, 20, 64), np.linspace(1.01, 0.99, N - 64)])
    tokens = (left * values) @ right
    exact = oracle.information(tokens)
    error = np.asarray(contribution(tokens.astype(np.float32))) / exact - 1
    assert abs(error.mean()) < 0.01
    assert error.std() < 0.03


def test_orthonormal_columns_however_close_they_were():
    rng = np.random.default_rng(2)
    close = (rng.normal(size=(2, 300, 1)) + 1e-4 * rng.normal(size=(2, 300, 20))).astype(np.float32)
    basis = np.asarray(subspace.orthonormal(jnp.asarray(close)))
    np.testing.assert_allclose(basis.mT @ basis, np.broadcast_to(np.eye(20), (2, 20, 20)), atol=0.01)
    np.testing.assert_allclose(basis @ (basis.mT @ close), close, atol=1e-5)
    assert np.isfinite(subspace.orthonormal(jnp.zeros((30, 8)))).all()


def test_batches_zero_rows_and_matrices_of_low_rank():
    tokens = oracle.decaying(np.random.default_rng(3), 300, 400)
    tokens[::7] = 0
    batch = np.stack([tokens, 2 * tokens, np.zeros_like(tokens), np.ones_like(tokens)])
    score = np.asarray(contribution(batch))
    np.testing.assert_allclose(score[0], contribution(tokens), rtol=0.02)  # mixtures of neighbours differ
    np.testing.assert_allclose(score[1], 2 * score[0], rtol=0.02)
    assert (score[0, ::7] == 0).all()
    assert (score[2] == 0).all()
    np.testing.assert_allclose(score[3], np.sqrt(400), rtol=1e-3)


def test_small_matrices_are_decomposed_whole():
    for shape in ((subspace.SOUGHT, 300), (300, subspace.SOUGHT)):
        tokens = oracle.decaying(np.random.default_rng(4), *shape)
        gram = jax.jit(functools.partial(tc.information_contribution, method="gram"))(tokens)
        np.testing.assert_array_equal(contribution(tokens), gram)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield (
            equation.primitive.name,
            max((len(v.aval.shape) and max(v.aval.shape) for v in equation.invars), default=0),
        )
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr)):
            if isinstance(value, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr):
                yield from primitives(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("shape", [(2, 576, 4096), (2, 2880, 1024)])
def test_no_decomposition_of_the_tokens_number(shape):
    """Of a program for any platform: what is decomposed, and what is only multiplied."""
    carve = functools.partial(tc.carve, keep=128, information="subspace")
    traced = jax.make_jaxpr(carve)(
        jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.ShapeDtypeStruct(shape[:2], jnp.float32)
    )
    sizes = {}
    for name, size in primitives(traced.jaxpr):
        sizes[name] = max(size, sizes.get(name, 0))
    assert sizes["eigh"] == sizes["cholesky"] == subspace.SOUGHT
    assert not {"svd", "qr", "geqrf", "householder_product", "lu", "schur", "while"} & sizes.keys()
