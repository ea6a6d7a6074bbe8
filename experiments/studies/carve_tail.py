"""Time many calls of `carve` on a CPU, idle or beside busy loops: the median, and the worst.

A mean hides what a user of a server sees: the call that took a second because LAPACK's threads waited for each other.
Two fresh processes, one after the other: as carving leaves LAPACK (with one thread), and with the threads that SciPy's
OpenBLAS has as installed. Prints a table and writes results.json.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import tokencarve_jax as tc
from experiments.core import cli, results
from experiments.studies.score_matrices import synthetic
from models.errors import CommandError
from tokencarve_jax._blas import open_blas

CARVING, INSTALLED = "as carving leaves it", "as installed"
LIMIT_S = 120  # of a setting, where calls take seconds
_EXAMPLES = """examples:
  python -m experiments.studies.carve_tail             on the machine as it is
  python -m experiments.studies.carve_tail --busy=2    beside two processes that take a core each
"""
# Ends by itself where its parent was killed.
_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10_000))"


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """That many processes beside the body, each of which would like a core for itself."""
    with contextlib.ExitStack() as ends:
        for _ in range(count):
            loop = subprocess.Popen([sys.executable, "-c", _LOOP, str(os.getpid())], stdin=subprocess.DEVNULL)
            ends.callback(loop.wait)
            ends.callback(loop.kill)
        yield


def prepare(setting: str) -> None:
    """Make this process, a fresh one, that of a setting."""
    jax.config.update("jax_platforms", "cpu")
    if setting == INSTALLED:  # said aloud, it is the user's choice, and stays; OpenBLAS takes no more than there are
        os.environ["OPENBLAS_NUM_THREADS"] = str(os.cpu_count())


def take(calls: int, tokens: int, width: int, keep: float | int, busy: int) -> tuple[list[float], int | None]:
    """Seconds of each call, of a matrix whose singular values decay as those of hidden states do; LAPACK's threads."""
    rng = np.random.default_rng(0)
    matrix = next(m for name, m in synthetic(tokens, width, rng) if name == "decay 1/j^0.5")
    arguments = jnp.asarray(matrix, jnp.float32), jnp.asarray(rng.random(tokens), jnp.float32)
    carve = functools.partial(tc.carve, *arguments, keep=keep)
    for _ in range(3):
        jax.block_until_ready(carve())
    seconds = []
    with busy_loops(busy):
        for _ in tqdm(range(calls), desc="calls", file=sys.stderr, disable=None):
            start = time.perf_counter()
            jax.block_until_ready(carve())
            seconds.append(time.perf_counter() - start)
            if sum(seconds) > LIMIT_S:
                break
    library = open_blas()
    return seconds, library.get_threads() if library else None


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is timed; the fields are the command's flags, and its `--help` explains them."""

    keep: float | int
    busy: int
    calls: int
    tokens: int
    width: int
    out: Path


def measure(settings: Settings, *, command: Sequence[str]) -> None:
    """Time both settings of LAPACK, print the table and write results.json.

    Args:
      settings: what to time.
      command: what is put on record as having asked for it.

    Raises:
      CommandError: `keep` or the folder does not fit; says which.
    """
    if settings.out.exists() and not settings.out.is_dir():
        raise CommandError(f"{settings.out}: there is a file of that name")
    try:
        tc.plan(settings.tokens, settings.keep)
    except ValueError as error:
        raise CommandError(f"keep={settings.keep}: {error}") from error
    lapacks = [CARVING, INSTALLED] if open_blas() else [CARVING]
    seconds, threads = {}, {}
    for setting in lapacks:
        fresh = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, fresh, initializer=prepare, initargs=(setting,)) as process:
            work = process.submit(take, settings.calls, settings.tokens, settings.width, settings.keep, settings.busy)
            seconds[setting], threads[setting] = work.result()
    about = results.machine()
    print(
        f"carve at {settings.tokens} x {settings.width}, keep={settings.keep}, on {about['cores']} cores, "
        f"beside {settings.busy} busy loops\n"
    )
    print(table(seconds, threads))
    value: dict[str, Any] = {
        "command": list(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": results.plain(settings),
        "machine": about,
        "versions": results.versions(),
        "threads": threads,
        "seconds": seconds,
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    results.write_json(settings.out / "results.json", value)
    print(f"\nEvery time: {settings.out / 'results.json'}")


def table(seconds: dict[str, list[float]], threads: dict[str, int | None]) -> str:
    """Median, worst, and how far apart they are."""
    rows = []
    for setting, taken in seconds.items():
        middle, worst = statistics.median(taken), max(taken)
        times = [f"{1e3 * value:.1f}" for value in (min(taken), middle, worst)]
        rows.append([setting, str(threads[setting] or "?"), str(len(taken)), *times, f"{worst / middle:.1f}"])
    return results.format_table(
        ["LAPACK", "threads", "calls", "fastest ms", "median ms", "worst ms", "worst / median"], rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, measure, and say what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="python -m experiments.studies.carve_tail", description=__doc__, epilog=_EXAMPLES)
    cli.add_keep_flag(parser, default=0.222)
    whole: dict[str, Any] = {"type": cli.positive, "metavar": "COUNT"}
    parser.add_argument(
        "--busy", type=cli.seed, default=0, metavar="COUNT", help="busy loops beside it (default: %(default)s)"
    )
    parser.add_argument("--calls", default=100, help=f"at most, in {LIMIT_S} s (default: %(default)s)", **whole)
    parser.add_argument("--tokens", default=576, help="N (default: %(default)s)", **whole)
    parser.add_argument("--width", default=4096, help="D (default: %(default)s)", **whole)
    cli.add_out_flag(parser, "results/carve_tail")

    def body(flags: argparse.Namespace) -> None:
        measure(Settings(**vars(flags)), command=["python", "-m", "experiments.studies.carve_tail", *argv])

    return cli.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
