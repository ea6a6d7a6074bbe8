"""`carve` against the float64 oracle, and its contract."""

import jax
import numpy as np
import pytest

import tokencarve_jax as tc
from tests import oracle

carve = jax.jit(tc.carve, static_argnames=("keep", "attention_weight", "oversample", "information", "debias"))

# (N, D, K, weight, number of inputs): 200 inputs, odd and even K, N above and below D.
CASES = [
    (80, 96, 17, "0.5", 40),
    (80, 48, 40, "0.3", 40),
    (80, 128, 27, "1", 20),
    (80, 96, 64, "0.5", 20),  # fewer than 1.5 K tokens exist
    (576, 640, 128, "0.5", 40),
    (576, 256, 127, "0.25", 20),
    (576, 640, 64, "0", 20),
]


def inputs(n, d, count, seed):
    rng = np.random.default_rng(seed)
    tokens = np.stack([oracle.decaying(rng, n, d, power=rng.uniform(0.3, 1.0)) for _ in range(count)])
    return tokens, rng.dirichlet(np.ones(n), size=count).astype(np.float32)


@pytest.mark.parametrize(("n", "d", "kept", "weight", "count"), CASES)
def test_equals_the_oracle(n, d, kept, weight, count):
    tokens, attention = inputs(n, d, count, seed=n + kept)
    exact = carve(tokens, attention, keep=kept, attention_weight=float(weight), information="svd")
    fast = carve(tokens, attention, keep=kept, attention_weight=float(weight), information="gram")
    shared = []
    for i in range(count):
        rows, indices, assignment = oracle.carve(tokens[i], attention[i], kept, weight=weight)
        np.testing.assert_array_equal(exact.indices[i], indices)
        np.testing.assert_array_equal(exact.assignment[i], assignment)
        np.testing.assert_allclose(exact.tokens[i], rows, atol=1e-5, rtol=1e-5)
        shared.append(len(set(indices) & set(fast.indices[i].tolist())) / kept)
    assert np.mean(shared) >= 0.95
