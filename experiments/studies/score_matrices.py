"""Matrices to compare the routes of the information score on: of a model, of a file, and hard ones at random."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.core import loading
from experiments.studies import hidden_states
from models.errors import CommandError

Rows = Iterator[tuple[str, np.ndarray, np.ndarray]]  # name, tokens [N, D], attention [N]


LIKE_HIDDEN_STATES = "decay 1/j^0.5"  # of the synthetic ones, whose singular values decay as those of models do


def like_hidden_states(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """The synthetic matrix [N, D] of that name."""
    return next(matrix for name, matrix in synthetic(n, d, rng) if name == LIKE_HIDDEN_STATES)


def synthetic(n: int, d: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Named matrices [N, D]."""

    def decaying(power: float, spread: float = 0.5) -> np.ndarray:
        rank = min(n, d)
        left = np.linalg.qr(rng.normal(size=(n, rank)))[0]
        right = np.linalg.qr(rng.normal(size=(d, rank)))[0]
        norms = np.exp(spread * rng.normal(size=(n, 1)))
        return norms * ((left * np.arange(1, rank + 1) ** -power) @ right.T) + 1e-6 * rng.normal(size=(n, d))

    def massive(count: int) -> np.ndarray:
        tokens = decaying(0.5)
        rows = rng.choice(n, size=count, replace=False)
        norms = np.linalg.norm(tokens, axis=1, keepdims=True)
        tokens[rows] *= 1000 * norms.mean() / norms[rows]
        return tokens

    for power in (0.3, 0.5, 1.0, 2.0):
        yield f"decay 1/j^{power}", decaying(power)
    near = decaying(0.5)
    near[n // 2 :] = near[: n - n // 2] * (1 + 1e-3 * rng.normal(size=(n - n // 2, d)))
    yield "half near-duplicates", near
    yield "one token x 1000", massive(1)
    yield "three tokens x 1000", massive(min(3, n))
    channels = decaying(0.5)
    channels[:, rng.choice(d, size=min(2, d), replace=False)] += 30
    yield "two massive channels", channels
    zeros = decaying(0.5)
    zeros[::5] = 0
    yield "a fifth zero rows", zeros
    yield "large common mean", decaying(0.3, 0.05) + 0.02 * 32 / d**0.5 * rng.normal(size=(1, d))
    for noise in (0.01, 0.03, 0.1, 0.5):
        yield f"rank 40 + noise of {noise}", of_low_rank(n, d, noise, rng)
    norms = np.exp(0.3 * rng.normal(size=(n, 1)))
    yield "20 clusters", rng.normal(size=(20, d))[rng.integers(0, 20, n)] + 0.3 * norms * rng.normal(size=(n, d))


def of_low_rank(n: int, d: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """A matrix [N, D] of rank 40, with noise of `noise` times its standard deviation."""
    low = (rng.normal(size=(n, 40)) * np.arange(1, 41) ** -0.5) @ rng.normal(size=(40, d))
    return low + noise * low.std() * rng.normal(size=(n, d))


def from_model(source: str, dtype: str, scenes: int, *, revision: str | None = None) -> Rows:
    """Hidden states of a model on held-out scenes, with its own attention."""
    if not scenes:
        return
    checkpoint = loading.load(source, dtype=dtype, revision=revision)
    loading.check_square(source, checkpoint.llava)
    for layers in hidden_states.of_scenes(checkpoint, scenes):
        for layer, (tokens, attention) in enumerate(layers, 1):
            yield f"hidden states before layer {layer}", tokens, attention


def from_file(path: Path | None, rng: np.random.Generator) -> Rows:
    """Every array of an .npz file, with attention at random."""
    if path is None:
        return
    try:
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise CommandError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path}: cannot be read as an .npz of arrays ({error})") from error
    for name, array in found.items():
        if array.ndim < 2 or array.size == 0 or array.dtype not in (np.float16, np.float32, np.float64):
            raise CommandError(
                f"{path}: {name!r} is {array.dtype} {list(array.shape)}; expected [..., N, D] in float16, "
                "float32 or float64"
            )
        if not np.isfinite(array).all():
            raise CommandError(f"{path}: {name!r} holds NaN or infinity, for which there is no reference")
        for tokens in array.reshape(-1, *array.shape[-2:]):
            yield name, tokens, rng.dirichlet(np.ones(len(tokens)))


def from_chance(n: int, widths: Sequence[int], seeds: int, rng: np.random.Generator) -> Rows:
    """The synthetic matrices of every width and seed."""
    for d, seed in itertools.product(widths, range(seeds)):
        for name, tokens in synthetic(n, d, np.random.default_rng(seed)):
            yield f"D={d}, {name}", tokens, rng.dirichlet(np.ones(len(tokens)))
