"""Random tokens and evidence for trying a compressor: sets with padding, with NaN and infinity, and with ties."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tokencarve_jax.compressor import EVIDENCE
from tokencarve_jax.tokens import Tokens

N, D, LEADING = 33, 24, (2, 3)
SIZES: Mapping[str, int] = {"N": N, "T": 7, "H": 3, "d": 12, "F": 20, "C": 16, "D": D}


def make_evidence(
    rng: np.random.Generator,
    names: Iterable[str],
    leading: tuple[int, ...] = LEADING,
    *,
    n: int = N,
    sizes: Mapping[str, int] = SIZES,
) -> dict[str, Any]:
    """Evidence by the letters of `EVIDENCE`: attention sums to 1, unequal numbers of words are valid."""
    sizes = {**sizes, "N": n}
    told: dict[str, Any] = {}
    for name in names:
        shape = (*leading, *(sizes[letter] for letter in EVIDENCE[name]))
        if name == "key":
            told[name] = jax.random.key(7)
        elif name == "projector":
            weights = rng.normal(size=(sizes["C"], sizes["D"])) / sizes["C"] ** 0.5
            told[name] = jax.tree_util.Partial(_bend, jnp.asarray(weights, jnp.float32))
        elif name == "text_valid":
            before, after = rng.integers(0, 3, size=(2, *leading, 1))
            place = np.arange(sizes["T"])
            told[name] = (place >= before) & (place < sizes["T"] - after)
        elif name.endswith("attention"):
            told[name] = rng.dirichlet(np.ones(n), size=shape[:-1]).astype(np.float32)
        else:
            told[name] = rng.normal(size=shape).astype(np.float32)
    return told


def _bend(weights: jax.Array, features: jax.Array) -> jax.Array:
    """A projector: [..., C] -> [..., D], smooth and not linear."""
    return jnp.tanh(features @ weights)


def token_axis(name: str) -> int | None:
    """The axis of tokens in a kind of evidence, from the end; None if it has none."""
    letters = EVIDENCE[name]
    return letters.index("N") - len(letters) if "N" in letters else None


def overwrite(array: np.ndarray, axis: int, where: np.ndarray, value: Any) -> np.ndarray:
    """A copy of `array`, whose entries of the tokens `where` [..., N] along `axis` are `value`."""
    if axis == -1 and array.ndim > where.ndim:  # [..., T, N] or [..., H, T, N]
        where = where.reshape(*where.shape[:-1], *[1] * (array.ndim - where.ndim), where.shape[-1])
        return np.where(where, value, array)
    return np.where(where.reshape(*where.shape, *[1] * (-1 - axis)), value, array)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Six sets of tokens, in two leading dimensions, and the evidence about them.

    Attributes:
        tokens: of NumPy arrays.
        told: the evidence.
        usable: [..., N] bool, valid, and all about it is finite.
    """

    tokens: Tokens
    told: dict[str, Any]
    usable: np.ndarray

    @classmethod
    def clean(cls, rng: np.random.Generator, names: Iterable[str]) -> "Batch":
        """All tokens are valid and finite."""
        values = rng.normal(size=(*LEADING, N, D)).astype(np.float32) + rng.normal(size=D).astype(np.float32)
        values[..., 20:24, :] = values[..., 3:7, :] + 0.01 * values[..., 20:24, :]  # near-duplicates
        valid, sizes = np.ones((*LEADING, N), bool), rng.integers(1, 4, size=(*LEADING, N)).astype(np.float32)
        positions = np.broadcast_to(5 + np.arange(N, dtype=np.int32)[:, None], (*LEADING, N, 1))
        arrays: Any = (values, valid, sizes, positions)
        return cls(Tokens(*arrays), make_evidence(rng, names), valid)

    @classmethod
    def uneven(cls, rng: np.random.Generator, names: Iterable[str]) -> "Batch":
        """With all that can be wrong with a token.

        Set 0 is whole; 1 has padding at its end; 2 has 8 valid tokens; 3 has values that are not finite; 4 has padding
        in its midst; 5 has padding, and evidence that is NaN, each kind about a token of its own.
        """
        whole = cls.clean(rng, names)
        values, valid, told = np.asarray(whole.tokens.values), np.ones((*LEADING, N), bool), dict(whole.told)
        valid[0, 1, 28:] = valid[1, 1, 10:19] = valid[1, 2, 30:] = valid[0, 2] = False
        valid[0, 2, rng.permutation(N)[:8]] = True
        usable = valid.copy()
        values[1, 0, 4], values[1, 0, 17, 3], values[1, 0, 25, 0] = np.nan, np.inf, -np.inf
        usable[1, 0, [4, 17, 25]] = False
        for token, name in enumerate(name for name in told if token_axis(name) is not None):
            where = np.zeros_like(valid)
            where[1, 2, 3 + 4 * token] = True
            told[name] = overwrite(told[name], token_axis(name) or 0, where, np.float32(np.nan))
            usable &= ~where
        return cls(whole.tokens, told, usable).replace(valid=valid)

    @property
    def valid(self) -> np.ndarray:
        """[..., N] bool."""
        return np.asarray(self.tokens.valid)

    def replace(self, *, told: Mapping[str, Any] | None = None, **tokens: Any) -> "Batch":
        """Other evidence, some of it or all, or other arrays of the tokens."""
        return Batch(dataclasses.replace(self.tokens, **tokens), {**self.told, **(told or {})}, self.usable)

    def one(self, *index: int) -> tuple[Tokens, dict[str, Any]]:
        """One of the sets."""
        told = {name: value[index] if EVIDENCE[name] else value for name, value in self.told.items()}
        return jax.tree.map(lambda array: array[index], self.tokens), told

    def with_others(self, other: "Batch") -> "Batch":
        """The first set, beside those of another batch."""
        first = np.arange(6).reshape(LEADING) == 0

        def mixed(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            return np.where(first.reshape(*LEADING, *[1] * (mine.ndim - 2)), mine, theirs)

        told = {name: mixed(value, other.told[name]) for name, value in self.told.items() if EVIDENCE[name]}
        return self.replace(told=told, **vars(jax.tree.map(mixed, self.tokens, other.tokens)))

    def reordered(self, order: np.ndarray) -> "Batch":
        """The same tokens in another order; positions stay as they are."""
        about = {name: axis for name in self.told if (axis := token_axis(name)) is not None}
        told = {name: np.take(self.told[name], order, axis) for name, axis in about.items()}
        return self.replace(
            told=told, values=np.take(self.tokens.values, order, -2), sizes=np.take(self.tokens.sizes, order, -1)
        )

    def tied(self, slope: float = 0.0) -> "Batch":
        """All tokens equal, in all sets: zeros, or where there is evidence of nothing else of length 4, as words are.

        Their products are whole numbers, also once they are brought to length 1, so that no rounding breaks a tie. With
        a slope, each attention (each value, where there is no evidence) is less by that than the one before.
        """
        steep = 1 - slope * np.arange(N)
        told: dict[str, Any] = {}
        for name, value in self.told.items():
            if token_axis(name) is not None:
                told[name] = np.zeros_like(value) + np.float32(steep / N if name.endswith("attention") else 0)
            elif "T" in EVIDENCE[name]:
                word = value[0, 0] if name == "text_valid" else np.float32(np.arange(value.shape[-1]) < 16)
                told[name] = np.broadcast_to(word, value.shape)
        about = any(token_axis(name) is not None for name in self.told)
        ones = np.zeros((N, D)) if about else steep[:, None] * (np.arange(D) < 16)
        values = np.broadcast_to(np.float32(ones), self.tokens.values.shape)
        return self.replace(told=told, values=values, sizes=np.ones_like(self.tokens.sizes))

    def with_garbage(self, where: np.ndarray, rng: np.random.Generator) -> "Batch":
        """Other values, sizes, positions and evidence for the tokens `where` [..., N], some of them not finite."""
        kinds = np.array([np.nan, np.inf, -np.inf, 1e30, 0.0, -3.0], np.float32)

        def spoil(array: Any, axis: int) -> np.ndarray:
            return overwrite(array, axis, where, rng.choice(kinds, size=array.shape))

        places = rng.integers(0, 99, size=self.tokens.positions.shape, dtype=np.int32)
        about = {name: axis for name in self.told if (axis := token_axis(name)) is not None}
        return self.replace(
            told={name: spoil(self.told[name], axis) for name, axis in about.items()},
            values=spoil(self.tokens.values, -2),
            sizes=np.where(where, np.float32(np.nan), self.tokens.sizes),
            positions=np.where(where[..., None], places, self.tokens.positions),
        )

    def without_other_text(self) -> "Batch":
        """NaN in all that is known of words that are not valid."""
        told: dict[str, Any] = {}
        for name in self.told:
            letters = EVIDENCE[name]
            if "T" in letters and name != "text_valid" and "text_valid" in self.told:
                before, after = [1] * letters.index("T"), [1] * (len(letters) - letters.index("T") - 1)
                valid = self.told["text_valid"].reshape(*LEADING, *before, -1, *after)
                told[name] = np.where(valid, self.told[name], np.float32(np.nan))
        return self.replace(told=told)
