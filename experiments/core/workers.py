"""Work that is shared out: to one worker in this process, or to several on Ray.

A worker is an object that takes long to make, such as one that has loaded a model. What it is to do comes as calls; the
process that hands them out is the only one that writes.
"""

from __future__ import annotations

import argparse
import contextlib
import operator
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from experiments.core.calls import Call, Worker
from experiments.core.cli import positive
from models.errors import CommandError


class Pool(Protocol):
    """The workers of a run.

    Attributes:
      count: how many there are.
      identity: what they agree in.
    """

    count: int
    identity: Mapping[str, Any]

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Any]]:
        """Have every call done once; gives each with its result as soon as it is there, in any order."""
        ...


class Alone:
    """A pool of one worker that lives in this process.

    Args:
      worker: does everything, in order.
    """

    def __init__(self, worker: Worker):
        self.count, self.identity, self._worker = 1, worker.identity(), worker

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Any]]:
        """See `Pool`."""
        return ((call, call.work(self._worker)) for call in calls)


def ask_first(pool: Pool, method: str, *args: Any) -> Any:
    """What a method of the first worker gives."""
    ((_, found),) = pool.run([Call(method, operator.methodcaller(method, *args), first=True)])
    return found


@contextlib.contextmanager
def start(make: Callable[[], Worker], *, workers: int = 1, address: str | None = None) -> Iterator[Pool]:
    """Start workers, and end them with the body.

    Args:
      make: makes a worker, where that is to live.
      workers: how many; each has a GPU of its own where there are GPUs, and its share of the cores otherwise.
      address: of a running Ray cluster, "auto" for the one on this machine; None starts Ray here where it is needed.

    Yields:
      The pool.

    Raises:
      CommandError: several are asked for and Ray is not installed; or see `experiments.core.ray_workers`.
      Whatever `make` raises.
    """
    if workers == 1 and address is None:
        yield Alone(make())
        return
    if address is None and "ray" not in sys.modules:
        # Ray listens on every network of the machine, and would run whatever it is told there. Read at its import.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        from experiments.core.ray_workers import RayPool
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise CommandError("several workers need Ray, which is not installed: pip install -e '.[ray]'") from error
    with RayPool(make, workers, address) as pool:
        yield pool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--workers` and `--ray-address`."""
    group = parser.add_argument_group(
        "several workers",
        "Ray (pip install -e '.[ray]') runs them. This process hands out the work and writes what comes back; what a "
        "lost worker was doing goes to another.",
    )
    group.add_argument(
        "--workers",
        type=positive,
        default=1,
        metavar="COUNT",
        help="how many, each with a GPU of its own or a share of the cores (default: %(default)s, without Ray)",
    )
    group.add_argument(
        "--ray-address",
        metavar="HOST:PORT|auto",
        help="a running Ray cluster instead of this machine alone; code and model must be at the same path on all its "
        "machines, as `ray job submit --working-dir=. -- python -m ...` sees to (RAY_AUTH_MODE=token if it wants one)",
    )
