"""Commands that are killed (SIGKILL) at random moments: `python -m tests.kills --kills=100`.

Each try kills a command on a small checkpoint at a random moment, gives it again until it has ended well, and compares
what it wrote with an undisturbed run. A command that had ended before its moment was not killed: one more try follows.
On Ray a worker, the driver, or both are killed, and processes that are left over are looked for too.
"""

import argparse
import importlib.util
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.commands import save_checkpoint
from tests.kills import alone, on_ray

ON_RAY = {"ray": on_ray.command, "ray-questions": on_ray.command_on_file}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    more = alone.NEEDS_LMMS_EVAL if importlib.util.find_spec("lmms_eval") else {}
    every = [*alone.JOBS, *more, *ON_RAY]
    parser.add_argument("--kills", type=int, default=len(every), help="in all, shared out (default: one each)")
    parser.add_argument("--what", nargs="+", choices=every, default=every, help="which commands (default: all)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags = parser.parse_args()
    print(f"seed {flags.seed}", flush=True)
    tries = []
    with tempfile.TemporaryDirectory() as folder:
        model = save_checkpoint(Path(folder) / "model")
        for index, name in enumerate(flags.what):
            share = (flags.kills - index - 1) // len(flags.what) + 1
            seed = flags.seed + index
            if name in ON_RAY:
                tries += on_ray.kill_many(share, seed, Path(folder) / name, ON_RAY[name])
                continue
            for found in alone.kill_many(name, share, random.Random(seed), model):
                tries.append(found)
                print(found, flush=True)
    same, hit, left = (sum(bool(found.get(key)) for found in tries) for key in ("same", "hit", "left"))
    print(
        f"seed {flags.seed}: {hit} killed, {len(tries) - hit} ended before; "
        f"{same} of {len(tries)} left what an undisturbed run leaves; {left} left processes behind"
    )
    return int(same != len(tries) or left > 0)


if __name__ == "__main__":
    sys.exit(main())
