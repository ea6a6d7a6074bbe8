"""Inputs for the contract that every row of the registry keeps: batches with padding and NaN, and any evidence."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tokencarve_jax import COMPRESSORS, EVIDENCE, Tokens

N, K, D, LEADING = 33, 11, 24, (2, 3)
SIZES = {"T": 7, "d": 12, "F": 20, "C": 16, "D": D}
KEY = jax.random.key(7)
# The registry, and how a row of it with groups, weights and text merges what it drops
ROWS = dict(COMPRESSORS) | {"merged": dataclasses.replace(COMPRESSORS["sparsevlm"], name="merged", rest="merged")}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a row of the registry cannot do; all that the table asks for."""

    least: Callable[[int], int] = lambda n: 1  # the fewest tokens that it can leave of n
    alone: bool = True  # a set gets the same result alone and in a batch, with the same key
    plain: bool = True  # a row that nothing joined stays as it is


LIMITS: Mapping[str, Limits] = {
    "random": Limits(alone=False),  # the sets of a batch draw different lots
    "tome": Limits(least=lambda n: (n + 1) // 2),  # every other token joins one of the rest
    "prumerge": Limits(plain=False),  # rows are sums over neighbours that may be in several
    "prumerge-plus": Limits(plain=False),
}


def limits(name):
    return LIMITS.get(name, Limits())


def keep(name, n=N, wanted=K):
    return max(wanted, limits(name).least(n))


def bend(weights, features):
    """A projector: [..., C] -> [..., D], smooth and not linear."""
    return jnp.tanh(features @ weights)


def make_evidence(rng, names, leading=(), n=N, sizes=SIZES):
    """Evidence by the shapes of `EVIDENCE`: attention positive, text valid in unequal numbers."""
    sizes = {**sizes, "N": n}
    told = {}
    for name in names:
        shape = (*leading, *(sizes[letter] for letter in EVIDENCE[name]))
        if name == "key":
            told[name] = KEY
        elif name == "projector":
            weights = rng.normal(size=(sizes["C"], sizes["D"])) / sizes["C"] ** 0.5
            told[name] = jax.tree_util.Partial(bend, jnp.asarray(weights, jnp.float32))
        elif name == "text_valid":
            before, after = rng.integers(0, 3, size=(2, *leading, 1))
            place = np.arange(sizes["T"])
            told[name] = (place >= before) & (place < sizes["T"] - after)
        elif name.endswith("attention"):
            told[name] = rng.dirichlet(np.ones(n), size=shape[:-1]).astype(np.float32)
        else:
            told[name] = rng.normal(size=shape).astype(np.float32)
    return told


def per_token(name):
    """The axis of tokens in a kind of evidence, from the end; None if it has none."""
    letters = EVIDENCE[name]
    return letters.index("N") - len(letters) if "N" in letters else None


def overwrite(array, axis, where, value):
    """A copy of `array`, whose entries of the tokens `where` [..., N] are `value`."""
    shape = [*where.shape, *[1] * (-1 - axis)]
    where = where.reshape(shape)
    if axis == -2 or array.ndim == where.ndim:
        return np.where(where, value, array)
    return np.where(where[..., None, :], value, array)  # [..., T, N]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Six sets, in two leading dimensions, and the evidence about them.

    Set 0 is whole; 1 has padding at its end; 2 has fewer valid tokens than are kept; 3 has values that are no numbers;
    4 has padding in its midst; 5 has padding, and evidence that is no number, each kind about a token of its own.
    """

    tokens: Tokens
    told: dict
    usable: np.ndarray  # [..., N]: valid, and all about it is finite

    @property
    def valid(self):
        return np.asarray(self.tokens.valid)

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)

    def with_garbage(self, where, rng):
        """Other values, sizes, positions and evidence for the tokens `where`, some of them no numbers."""
        kinds = np.array([np.nan, np.inf, -np.inf, 1e30, 0.0, -3.0], np.float32)

        def spoil(array, axis):
            return overwrite(array, axis, where, rng.choice(kinds, size=array.shape).astype(array.dtype))

        tokens = Tokens.of(
            spoil(np.asarray(self.tokens.values), -2),
            valid=self.tokens.valid,
            sizes=np.where(where, np.nan, self.tokens.sizes),
            positions=np.where(
                where[..., None], rng.integers(0, 99, size=self.tokens.positions.shape), self.tokens.positions
            ),
        )
        told = {
            name: array if per_token(name) is None else spoil(array, per_token(name))
            for name, array in self.told.items()
        }
        return dataclasses.replace(self, tokens=tokens, told=told)

    def one(self, *index):
        """One of the sets."""
        told = {name: value[index] if EVIDENCE[name] else value for name, value in self.told.items()}
        return jax.tree.map(lambda array: array[index], self.tokens), told


def make_batch(names, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(*LEADING, N, D)).astype(np.float32) + rng.normal(size=D).astype(np.float32)
    values[..., 20:24, :] = values[..., 3:7, :] + 0.01 * values[..., 20:24, :]  # near-duplicates
    valid, told = np.ones((*LEADING, N), bool), make_evidence(rng, names, LEADING)
    valid[0, 1, 28:] = False
    valid[0, 2] = False
    valid[0, 2, rng.permutation(N)[:8]] = True
    valid[1, 1, 10:19] = False
    valid[1, 2, 30:] = False
    usable = valid.copy()
    values[1, 0, 4], values[1, 0, 17, 3], values[1, 0, 25, 0] = np.nan, np.inf, -np.inf
    usable[1, 0, [4, 17, 25]] = False
    for token, name in enumerate(name for name in names if per_token(name) is not None):
        where = np.zeros_like(valid)
        where[1, 2, 3 + 4 * token] = True
        told[name] = overwrite(told[name], per_token(name), where, np.float32(np.nan))
        usable &= ~where
    tokens = Tokens.of(values, valid=valid, sizes=rng.integers(1, 4, size=valid.shape), positions=5 + np.arange(N))
    return Batch(tokens, told, usable)
