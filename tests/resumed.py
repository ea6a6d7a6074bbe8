"""Runs that are interrupted with some settings and gone on with others: `python -m tests.resumed --pairs=40 --seed=1`.

What comes of it must be what a fresh run of the second settings gives, or be refused in one line. Ends with status 1
where it is anything else.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import compare
from experiments import eval as evaluation
from experiments.core.journal import Journal
from models.errors import CommandError
from tests.commands import save_checkpoint
from tests.hostile.flags import call

COMMANDS = {"eval": evaluation.main, "compare": compare.main}
FLAGS: dict[str, tuple[str, ...]] = {
    "--keep": ("5", "9", "0.5"),
    "--limit": ("1", "2"),
    "--batch-size": ("2", "3"),
    "--seed": ("0", "0", "1"),
    "--max-new-tokens": ("1", "1", "2"),
    "--gallery": ("1", "2"),
    "--methods": ("tokencarve", "tokencarve random", "fastv random"),
}
OF_THE_RUN = ("date", "command", "prefill_s", "first_call_s", "own_s", "prefill_runs", "notes")


@contextlib.contextmanager
def interrupted(after: int) -> Iterator[None]:
    """Press Ctrl-C when so many entries are written down."""
    add, count = Journal.add, 0

    def counting(self: Journal, entry: dict[str, Any]) -> None:
        nonlocal count
        add(self, entry)
        count += 1
        if count == after:
            raise KeyboardInterrupt

    Journal.add = counting
    try:
        yield
    finally:
        Journal.add = add


def draw(generator: random.Random, model: Path) -> tuple[str, list[str]]:
    """A command with some settings."""
    name = generator.choice(["eval", "eval", "compare"])
    argv = [f"--model={model}", "--no-report", *(["--repeats=1"] if name == "compare" else [])]
    for flag, values in FLAGS.items():
        argv += [flag, *generator.choice(values).split()]
    return name, argv


def plain(value: Any) -> Any:
    """Results without what differs from run to run: times, and when and by what words it was asked for."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in OF_THE_RUN}
    return [plain(part) for part in value] if isinstance(value, list) else value


def run(name: str, argv: Sequence[str], out: Path) -> str:
    """What a command leaves, as text; CommandError where it is refused in one line."""
    call(COMMANDS[name], [*argv, f"--out={out}"])
    return json.dumps(plain(json.loads((out / "results.json").read_text())), sort_keys=True)


def compared(first: tuple[str, list[str]], second: tuple[str, list[str]], after: int, folder: Path) -> str:
    """What came of going on: "refused", "equal", or what is wrong."""
    resumed, fresh = folder / "resumed", folder / "fresh"
    with interrupted(after), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        COMMANDS[first[0]]([*first[1], f"--out={resumed}"])
    try:
        found = run(*second, resumed)
    except CommandError as error:
        return "refused" if "holds " in str(error) else f"refused with {error}"
    finally:
        shutil.rmtree(resumed, ignore_errors=True)
    want = run(*second, fresh)
    shutil.rmtree(fresh)
    return "equal" if found == want else f"differs: {found[:2000]} and {want[:2000]}"


def pairs(count: int, seed: int, folder: Path) -> Iterator[str]:
    """What came of each pair; half of them differ in one setting alone."""
    generator, model = random.Random(seed), save_checkpoint(folder / "model")
    for _ in range(count):
        first = draw(generator, model)
        second = draw(generator, model)
        if generator.random() < 0.5:
            flag = generator.choice(list(FLAGS))
            at = first[1].index(flag)
            end = next((i for i in range(at + 1, len(first[1])) if first[1][i].startswith("--")), len(first[1]))
            second = first[0], [*first[1][:at], flag, *generator.choice(FLAGS[flag]).split(), *first[1][end:]]
        outcome = compared(first, second, generator.randrange(1, 4), folder)
        good = outcome in ("equal", "refused")
        yield outcome if good else f"{outcome}: {first} then {second}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for outcome in pairs(flags.pairs, flags.seed, Path(folder)):
            found.append(outcome)
            print(len(found), outcome, flush=True)
    good = {kind: found.count(kind) for kind in ("equal", "refused")}
    print(f"seed {flags.seed}: {len(found)} pairs, {good}")
    return int(sum(good.values()) < len(found) or not good["equal"])


if __name__ == "__main__":
    sys.exit(main())
