"""What tests of `carve` are tried on: shapes with options, and batches of arrays of every kind, by hypothesis."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import tokencarve_jax as tc

KINDS = ("generic", "decaying", "duplicates", "equal scores", "zeros", "broken", "ragged", "massive")


@dataclasses.dataclass(frozen=True)
class Bucket:
    n: int
    d: int
    keep: int
    weight: float = 0.5
    oversample: float = 1.5
    information: str = "gram"
    debias: bool = False
    dtype: str = "float32"

    @functools.cached_property
    def carve(self):
        static = dataclasses.asdict(self)
        del static["n"], static["d"], static["dtype"]
        return jax.jit(functools.partial(tc.carve, attention_weight=static.pop("weight"), **static))


BUCKETS = (
    Bucket(17, 9, 5, weight=0.37),
    Bucket(12, 20, 1, weight=0.0, information="svd"),
    Bucket(24, 6, 20, dtype="bfloat16"),
    Bucket(20, 20, 7, weight=1.0, oversample=1.0, debias=True),
    Bucket(31, 4, 15, weight=0.3, oversample=2.0, dtype="float16"),
    Bucket(2, 3, 1, information="norm"),
    Bucket(10, 1, 7, weight=0.9, oversample=1.25, information="subspace", debias=True),
    Bucket(16, 33, 15, weight=0.37, information="svd"),
    Bucket(33, 12, 11, weight=0.37, information="norm"),
    Bucket(260, 250, 40, information="subspace"),
)
"""Each is compiled once; the cases in it differ in what the arrays hold."""

generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def generate(bucket, rng, count):
    """tokens [count, N, D], attention [count, N], valid [count, N], kind [count]."""
    n, d = bucket.n, bucket.d
    kind = rng.integers(len(KINDS), size=count)
    named = {name: np.flatnonzero(kind == i) for i, name in enumerate(KINDS)}
    tokens = rng.normal(size=(count, n, d)) * np.exp(rng.normal(size=(count, n, 1)))
    attention = rng.random((count, n)) ** 3
    valid = np.ones((count, n), bool)
    tokens[named["decaying"]] *= np.arange(1, d + 1) ** -rng.uniform(0, 2)
    source = rng.integers(n, size=(count, n))
    copies = np.take_along_axis(tokens, source[..., None], axis=1)
    tokens[named["duplicates"]] = copies[named["duplicates"]]
    attention[named["duplicates"]] = np.round(attention, 1)[named["duplicates"]]
    attention[named["equal scores"]] = 0.25
    tokens[named["equal scores"]] = np.sign(tokens[named["equal scores"]])
    gone = rng.random((count, n)) < rng.random((count, 1))
    tokens[named["zeros"]] *= ~gone[named["zeros"]][..., None]
    valid[named["ragged"]] = ~gone[named["ragged"]]
    tokens[named["massive"], rng.integers(n, size=named["massive"].size)] *= 1000
    for i in named["broken"]:
        valid[i] = rng.random(n) < 0.9
        for value in (np.nan, np.inf, -np.inf):
            tokens[i, rng.integers(n), rng.integers(d)] = value
            attention[i, rng.integers(n)] = value
    tokens = np.asarray(jnp.asarray(tokens, bucket.dtype).astype(jnp.float32))
    return tokens, attention.astype(np.float32), valid, kind
