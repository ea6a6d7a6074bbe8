"""Weights that changed on disk and still load: only recorded hashes tell."""

import contextlib
import functools
import random
from collections.abc import Iterator
from pathlib import Path

import models
from models import convert
from tests.hostile.case import Case
from tests.hostile.flags import call

FLIPS = 30


@contextlib.contextmanager
def _flipped(path: Path, at: int) -> Iterator[None]:
    """One bit of one byte, for a while."""
    good = path.read_bytes()
    bad = bytearray(good)
    bad[at] ^= 1
    path.write_bytes(bad)
    try:
        yield
    finally:
        path.write_bytes(good)


def known(model: Path, folder: Path) -> Iterator[Case]:
    """Whole folders in both formats, then a flipped bit anywhere in their weights.

    Args:
      model: a good checkpoint.
      folder: empty; for its conversions.
    """
    generator = random.Random(0)
    orbax, hf = folder / "orbax", folder / "hf"
    for argv in ([model, orbax], [orbax, hf, "--to-hf"]):
        call(convert.main, [str(word) for word in argv])
    for made in (orbax, hf):
        ask = functools.partial(models.from_pretrained, made, verify=True)
        yield Case(f"verify {made.name}", ask, "worked")
        yield Case(
            f"convert --verify {made.name}", functools.partial(call, convert.main, [str(made), "--verify"]), "worked"
        )
        weights = [
            path
            for path in sorted(made.rglob("*"))
            if path.suffix == ".safetensors" or path.parent.parent == made / "weights"
        ]
        for _ in range(FLIPS):
            path = generator.choice(weights)
            at = generator.randrange(path.stat().st_size)

            def attempt(path: Path = path, at: int = at, made: Path = made) -> None:
                with _flipped(path, at):
                    models.from_pretrained(made, verify=True)

            yield Case(f"bit at {at} of {path.relative_to(folder)}", attempt, "refused", "is not what was recorded")
