"""Methods of one's own, right, wrong, and mutated."""

import functools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.core import methods
from tests.hostile.case import STARTING_S, Case
from tests.hostile.images import mutate

HEAD = "import jax, jax.numpy as jnp\nfrom tokencarve_jax import Compressor, Selection\n"
FIRST = f"{HEAD}def own(tokens, *, keep):\n    "
ROWS = "jnp.broadcast_to(jnp.arange({0}), (*tokens.valid.shape[:-1], {0}))"
GOOD = (
    f"{FIRST}usable = tokens.valid & jnp.isfinite(tokens.values).all(-1)\n"
    "    return Selection(jnp.sort(jnp.argsort(~usable, axis=-1)[..., :keep]))\n"
)
WRONG = (
    *(f"{FIRST}return {value}" for value in ("None", "1", "tokens", "(1, 2)", "tokens.values[..., :keep, :]")),
    *(f"{FIRST}return Selection({ROWS.format(count)})" for count in ("keep + 1", "keep - 1", "tokens.valid.shape[-1]")),
    f"{FIRST}return Selection(0 * {ROWS.format('keep')})",
    f"{FIRST}return Selection(-1 - {ROWS.format('keep')})",
    f"{FIRST}return Selection({ROWS.format('keep')}[..., ::-1])",
    f"{FIRST}return Selection({ROWS.format('keep')} * jnp.nan)",
    *(f"{FIRST}raise {error}" for error in ("ValueError('no\\nno')", "StopIteration", "SystemExit(0)", "MemoryError")),
    f"{FIRST}return own(tokens, keep=keep)",
    "raise SystemExit(0)",
    "import nowhere_at_all",
    "def own(:",
    "own = 5",
    "",
    "\0",
)


def find(path: Path, text: bytes) -> None:
    """Have a command find it in a file, and try it."""
    path.write_bytes(text)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        methods.find(f"{path}:own")
    finally:
        sys.dont_write_bytecode = before


def known(path: Path) -> Iterator[Case]:
    """A good one, and those that break the contract."""
    for text in (GOOD, *WRONG):
        attempt, want = functools.partial(find, path, text.encode()), "worked" if text == GOOD else "refused"
        yield Case(f"own method {text[-60:]!r}", attempt, want, "" if text == GOOD else "own", STARTING_S)


def random_case(path: Path, generator: random.Random, number: int) -> Case:
    """A mutation; what still keeps the contract is right."""
    text = mutate(GOOD.encode(), generator)
    return Case(f"own method {number}: {text!r}", functools.partial(find, path, text), limit_s=STARTING_S)
