"""Tries thousands of hostile inputs, and counts what came of them: `python -m tests.hostile --cases=6000 --seed=1`.

Images by mutation in every format that Pillow writes, configs field by field, processor, tokenizer and template files,
prompts, flags, journals, results and methods of one's own, special files in the place of all that is read, and whole
processes short of memory, disk or descriptors, in odd environments, or interrupted twice. Good inputs are among
them, so that refusing everything fails. Ends with status 1 where anything was neither done nor refused in one line.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from PIL import Image

from experiments.core import loading
from tests.commands import save_checkpoint
from tests.hostile import checkpoints, flags, images, limits, own, prompts, results, special, weights
from tests.hostile.case import FAULTS, Case, Counts, run

SHARES = {
    "images": 50,
    "configs": 12,
    "small files": 12,
    "prompts": 8,
    "flags": 5,
    "journals": 10,
    "pages": 2.5,
    "own methods": 0.5,
}
"""Percent of the random cases."""
GOOD_AT_LEAST = 0.15
"""Of all cases: fewer that work would mean that everything is refused."""


def cases(folder: Path, count: int, seed: int, *, processes: bool) -> Iterator[Case]:
    """Those of which it is known what must come of them, then random ones up to `count`.

    Args:
      folder: empty; for checkpoints and scratch files.
      count: of all cases but those that start processes; where it is small, half of them are of the first kind.
      seed: of the random ones.
      processes: try whole processes too.
    """
    generator = random.Random(seed)
    model, scratch, image = save_checkpoint(folder / "model"), folder / "scratch", folder / "good.png"
    converted = folder / "converted"
    scratch.mkdir()
    converted.mkdir()
    left, mine, left_behind = folder / "special", folder / "mine.py", folder / "results"
    left.mkdir()
    left_behind.mkdir()
    mine.touch()
    folders = results.Folders.make(left_behind)
    Image.linear_gradient("L").convert("RGB").save(image)
    bench = checkpoints.Bench.make(model, folder / "damaged")
    checkpoint = loading.load(str(model), dtype="float32")
    if processes:
        yield from limits.known(limits.Processes(model, image, scratch))
    always = [
        *images.known(),
        *checkpoints.known(bench),
        *prompts.known(checkpoint),
        *flags.known(model, image, scratch),
        *weights.known(model, converted),
        *results.known(folders),
        *own.known(mine),
        *special.known(left, folders.folder / "eval", converted / "orbax"),
    ]
    if count < 2 * len(always):
        always = generator.sample(always, count // 2)
    yield from always
    makes: dict[str, Callable[[int], Case]] = {
        "images": lambda number: images.random_case(generator, number),
        "configs": lambda number: checkpoints.random_config(bench, generator, number),
        "small files": lambda number: checkpoints.random_small_file(bench, generator, number),
        "prompts": lambda number: prompts.random_case(checkpoint, generator, number),
        "flags": lambda number: flags.random_case(image, generator, number),
        "journals": lambda number: results.random_journal(folders, generator, number),
        "pages": lambda number: results.random_page(folders, generator, number),
        "own methods": lambda number: own.random_case(mine, generator, number),
    }
    for number in range(count - len(always)):
        (kind,) = generator.choices(list(SHARES), list(SHARES.values()))
        yield makes[kind](number)


def try_all(count: int, seed: int, *, processes: bool) -> Counts:
    """Run them in a temporary folder."""
    jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner
    found = Counts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in cases(folder, count, seed, processes=processes):
            found.add(case, *run(case, folder))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags_ = parser.parse_args()
    print(f"seed {flags_.seed}", flush=True)
    began = time.monotonic()
    found = try_all(flags_.cases, flags_.seed, processes=True)
    total = found.counts.total()
    for fault in found.faults:
        print(fault)
    print(", ".join([f"clean {total - len(found.faults)}", *(f"{kind} {found.counts[kind]}" for kind in FAULTS)]))
    print(
        f"seed {flags_.seed}: {total} cases in {time.monotonic() - began:.0f} s, "
        f"{found.counts['worked']} done and {found.counts['refused']} refused in one line"
    )
    return int(bool(found.faults) or found.counts["worked"] < GOOD_AT_LEAST * total)


if __name__ == "__main__":
    sys.exit(main())
