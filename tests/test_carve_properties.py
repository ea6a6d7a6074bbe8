"""The invariants of `carve`, by hypothesis over shapes, dtypes and options, and a slice of the fuzzing command."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fuzz_carve


@st.composite
def buckets(draw):
    n = draw(st.integers(1, 10))
    return fuzz_carve.Bucket(
        n=n,
        d=draw(st.integers(1, 12)),
        keep=draw(st.integers(1, n)),
        weight=draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])),
        oversample=draw(st.sampled_from([1.0, 1.25, 1.5, 2.0])),
        information=draw(st.sampled_from(["svd", "gram", "subspace", "norm"])),
        debias=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(bucket=buckets(), seed=st.integers(0, 2**32 - 1))
def test_invariants(bucket, seed):
    tokens, attention, valid, _ = fuzz_carve.generate(bucket, np.random.default_rng(seed), 64)
    out = bucket.carve(jnp.asarray(tokens, bucket.dtype), attention, valid=valid)
    if bucket.keep < bucket.n:
        fuzz_carve.check(bucket, tokens, attention, valid, out)
    else:
        np.testing.assert_array_equal(out.tokens.astype(jnp.float32), tokens)


def test_a_slice_of_the_fuzzing_command():
    done, permuted = fuzz_carve.run(2000, seed=1, batch=250)
    assert done == 2000
    assert permuted > 30
