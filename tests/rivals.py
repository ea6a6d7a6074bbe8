"""Two commands that write to one place at the same time: `python -m tests.rivals --tries=20`.

Two evaluations into one folder and two conversions into one DEST, the second a random moment after the first. One has
to come out whole, and the other has to say who is there and end with an error.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.commands import save_checkpoint
from tests.kills.on_ray import command, finish, samples, start

HELD = re.compile(r"\S+ is being written by process \d+ on \S+ since 2\S+ \S+; wait until that is done, or .*\n")


def conversion(model: Path, dest: Path) -> list[str]:
    return [sys.executable, "-m", "models.convert", str(model), str(dest)]


def race(argv: list[str], delay: float) -> list[tuple[int, str, str]]:
    """Start a command twice; gives how both ended, the successful one first."""
    processes = [start(argv)]
    time.sleep(delay)
    processes.append(start(argv))
    return sorted((finish(process) for process in processes), key=lambda ended: ended[0])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def whole_run(out: Path, wanted: Path) -> bool:
    """Every question once, nothing torn, and the answers of an undisturbed run."""
    entries = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()[1:]]
    asked = [index for entry in entries for index in entry["indices"]]
    once = len(set(asked)) == len(asked)
    return once and samples(out) == samples(wanted) and files(out) == files(wanted)


def whole_conversion(dest: Path, wanted: Path) -> bool:
    """The files of an undisturbed conversion, and nothing beside them."""
    names = files(wanted)
    same = files(dest) == names
    for name in names - {"weights/commit_success.txt"}:  # it names the folder
        same = same and (dest / name).stat().st_size == (wanted / name).stat().st_size
    return same and list(dest.parent.iterdir()) == [dest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags = parser.parse_args()
    print(f"seed {flags.seed}")
    generator = random.Random(flags.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = save_checkpoint(folder / "model")
        for name, argv_of, is_whole in (("eval", command, whole_run), ("convert", conversion, whole_conversion)):
            assert finish(start(argv_of(model, folder / name)))[0] == 0
            whole = held = 0
            for number in range(flags.tries):
                target = folder / f"{name}-{number}" / "target"
                target.parent.mkdir()
                (first, _, said), (second, _, why) = race(argv_of(model, target), generator.uniform(0, 0.5))
                whole += first == 0 and is_whole(target, folder / name)
                # Who comes when all is done finds it done, and nobody there.
                held += second != 0 and bool(HELD.search(why)) and why.count("\n") == 1
                if first or not second:
                    print(name, number, first, second, said, why)
            print(f"{name}: {whole} of {flags.tries} whole, {held} of {flags.tries} rivals were told who is there")
            failed += 2 * flags.tries - whole - held
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
