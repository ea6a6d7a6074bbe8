"""Time many calls of `carve` on a CPU, idle or beside busy loops: the median, and the worst.

A mean hides what a user of a server sees: the call that took a second because LAPACK's threads waited for each other.
Two fresh processes, one after the other: as carving leaves LAPACK (with one thread), and with the threads that SciPy's
OpenBLAS has as installed. Prints a table and writes results.json.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import tokencarve_jax as tc
from experiments.core import cli, results
from experiments.metrics.latency import timed
from experiments.studies.score_matrices import like_hidden_states
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
_HEADER = ("LAPACK", "threads", "calls", "fastest ms", "median ms", "worst ms", "worst / median")


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """That many processes beside the body, each of which would like a core for itself."""
    with contextlib.ExitStack() as ends:
        for _ in range(count):
            loop = subprocess.Popen([sys.executable, "-c", _LOOP, str(os.getpid())], stdin=subprocess.DEVNULL)
            ends.callback(loop.wait)
            ends.callback(loop.kill)
        yield


def _prepare(setting: str) -> None:
    """Make this process, a fresh one, that of a setting."""
    jax.config.update("jax_platforms", "cpu")
    if setting == INSTALLED:  # carving leaves a number that the user chose; OpenBLAS takes no more than there are
        os.environ["OPENBLAS_NUM_THREADS"] = str(os.cpu_count())


def _take(calls: int, tokens: int, width: int, keep: float | int, busy: int) -> tuple[list[float], int | None]:
    """Seconds of each call, of a matrix whose singular values decay as those of hidden states do; LAPACK's threads."""
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(like_hidden_states(tokens, width, rng), jnp.float32)
    arguments = matrix, jnp.asarray(rng.random(tokens), jnp.float32)
    carve = functools.partial(tc.carve, *arguments, keep=keep)
    for _ in range(3):
        timed(carve)
    seconds = list[float]()
    with busy_loops(busy):
        for _ in tqdm(range(calls), desc="calls", file=sys.stderr, disable=None):
            seconds.append(timed(carve)[1])
            if sum(seconds) > LIMIT_S:
                break
    library = open_blas()
    return seconds, library.get_threads() if library else None


def measure(flags: argparse.Namespace, *, command: Sequence[str]) -> None:
    """Time both settings of LAPACK, print the table and write results.json.

    Raises:
      CommandError: `--keep` or the folder does not fit; says which.
    """
    path = results.claim(flags.out, "carve-tail")
    keep, tokens, width, busy = flags.keep, flags.tokens, flags.width, flags.busy
    try:
        tc.plan(tokens, keep)
    except ValueError as error:
        raise CommandError(f"keep={keep}: {error}") from error
    seconds, threads = {}, {}
    for setting in [CARVING, INSTALLED] if open_blas() else [CARVING]:
        fresh = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, fresh, initializer=_prepare, initargs=(setting,)) as process:
            work = process.submit(_take, flags.repeats, tokens, width, keep, busy)
            seconds[setting], threads[setting] = work.result()
    machine, rows = results.machine(), []
    for setting, taken in seconds.items():
        median, worst = statistics.median(taken), max(taken)
        times = [f"{1e3 * value:.1f}" for value in (min(taken), median, worst)]
        rows.append([setting, str(threads[setting] or "?"), str(len(taken)), *times, f"{worst / median:.1f}"])
    print(f"carve at {tokens} x {width}, keep={keep}, on {machine['cores']} cores, beside {busy} busy loops\n")
    print(results.format_table(_HEADER, rows))
    results.write_study(path, "carve-tail", command, vars(flags), threads=threads, seconds=seconds)
    print(f"\nEvery time: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, measure, and print what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="python -m experiments.studies.carve_tail", description=__doc__, epilog=_EXAMPLES)
    cli.add_keep_flag(parser, default=0.222)
    whole: dict[str, Any] = {"type": cli.positive, "metavar": "COUNT"}
    parser.add_argument(
        "--busy", type=cli.seed, default=0, metavar="COUNT", help="busy loops beside it (default: %(default)s)"
    )
    parser.add_argument("--repeats", default=100, help=f"calls at most, in {LIMIT_S} s (default: %(default)s)", **whole)
    parser.add_argument("--tokens", default=576, help="N (default: %(default)s)", **whole)
    parser.add_argument("--width", default=4096, help="D (default: %(default)s)", **whole)
    cli.add_out_flag(parser, "results/carve_tail")
    command = ["python", "-m", "experiments.studies.carve_tail", *argv]
    return cli.run(lambda flags: measure(flags, command=command), parser, argv)


if __name__ == "__main__":
    sys.exit(main())
