"""Batches that another process makes while this one's device is busy: images are read, padded, resized, and all packed.

A process, and no thread: parsers of images and templates run behind guards that belong to a whole process, such as its
limit of memory (`models.io.untrusted`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from experiments.core import processes
from experiments.core.results import cores

T = TypeVar("T")
MAX_PROCESSES = 4
"""Processes: images of a batch are read in a fraction of the time that a model takes for them."""

_make: Callable[[Any], Any]  # of a process that makes batches


class Ahead(Generic[T]):
    """Gives one thing after the other, and has the next ones made meanwhile.

    Starting a process takes seconds; until it is there, and where it is lost, things are made here.

    Args:
      here: makes a thing from its key.
      builder: makes, in another process, what makes things there; both can be pickled.
    """

    def __init__(self, here: Callable[[Any], T], builder: Callable[[], Callable[[Any], T]]):
        self._here, self._builder = here, builder
        self._pool: ProcessPoolExecutor | None = None
        self._ready: Future[None] | None = None
        self._coming: dict[Hashable, Future[T]] = {}

    def get(self, key: Any, then: Sequence[Any] = ()) -> T:
        """The thing of that key; those of `then` are likely to be asked for next, in that order."""
        self._start(then)
        coming = self._coming.pop(key, None)
        try:
            if self._pool and self._ready and self._ready.done():
                self._ready.result()
                for other in then[: _processes()]:
                    if other not in self._coming:
                        self._coming[other] = self._pool.submit(_made, other)
            return self._here(key) if coming is None else coming.result()
        except BrokenProcessPool:  # the system ends processes where memory is short
            self.close()
            return self._here(key)

    def _start(self, then: Sequence[Any]) -> None:
        if self._pool is None and self._ready is None and then:
            self._pool = processes.helpers(_processes(), _begin, self._builder)
            self._ready = processes.start(self._pool)

    def close(self) -> None:
        """End the processes; what comes is made here."""
        self._coming = {}
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _processes() -> int:
    return max(1, min(MAX_PROCESSES, cores() - 1))


def _begin(builder: Callable[[], Callable[[Any], Any]]) -> None:
    global _make
    _make = builder()


def _made(key: Any) -> Any:
    return _make(key)
