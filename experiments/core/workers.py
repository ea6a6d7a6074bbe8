"""Work that is shared out: to one worker in this process, or to several on Ray.

A worker is an object that takes long to make, such as one that has loaded a model. What it is to do comes as calls; the
process that hands them out is the only one that writes.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from experiments.core.cli import positive


class Worker(Protocol):
    """What a worker must have, beside what calls use."""

    def identity(self) -> Mapping[str, Any]:
        """What must be the same for all workers of a run, as JSON types: versions, code, weights."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """Something for a worker to do. Equal to itself alone, and hashable whatever it holds.

    Attributes:
      key: tells it from the others.
      work: called with the worker; it and what it gives can be pickled.
      first: only the first worker does this: what is timed should be timed in one place.
    """

    key: Hashable
    work: Callable[[Any], Any]
    first: bool = False


class Pool(Protocol):
    """The workers of a run: how many there are, and what they agree in."""

    count: int
    identity: Mapping[str, Any]

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Any]]:
        """Have every call done once; gives each with its result as soon as it is there, in any order."""
        ...


class Alone:
    """A pool of one worker, in this process; it does everything in order."""

    def __init__(self, worker: Worker):
        self.count, self.identity, self._worker = 1, worker.identity(), worker

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Any]]:
        """See `Pool`."""
        return ((call, call.work(self._worker)) for call in calls)


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
