"""One run in one folder: its lock, its workers, its journal, its progress bar and its results.json."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from tqdm import tqdm

from experiments.core import results
from experiments.core.config import RunConfig
from experiments.core.journal import Journal, Shape
from experiments.core.workers import Alone, Call, Pool, Worker
from models.errors import CommandError
from models.io.writing import own_folder

T = TypeVar("T")


@contextlib.contextmanager
def start(make: Callable[[], Worker], *, workers: int = 1, address: str | None = None) -> Iterator[Pool]:
    """Start workers, and end them with the body.

    Args:
      make: makes a worker, where that is to live.
      workers: how many; each has a GPU of its own where there are GPUs, and its share of the cores otherwise.
      address: of a running Ray cluster, "auto" for the one on this machine; None starts Ray here where it is needed.

    Raises:
      CommandError: several are asked for and Ray is not installed; or see `RayPool`.
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


class Runner:
    """A run that is being made, or gone on with; a context manager.

    Args:
      config: where, and by whom.
      kind: of the results: "eval", "questions", "compare", "rank", "reproduce".
      make: makes a worker.

    Attributes:
      out: the folder.
      pool: the workers.

    Raises:
      CommandError: the folder holds another kind of results; or see `start`.
      InUseError: another process writes to the folder.
    """

    pool: Pool

    def __init__(self, config: RunConfig, kind: str, make: Callable[[], Worker]):
        self.out, self.kind, self._config, self._make = config.out, kind, config, make
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            stack.enter_context(own_folder(self.out))
            results.check_kind(self.out, self.kind)
            pool = start(self._make, workers=self._config.workers, address=self._config.ray_address)
            self.pool = stack.enter_context(pool)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def first(self, work: Callable[[Any], T]) -> T:
        """What comes of some work of the first worker."""
        ((_, found),) = self.pool.run([Call("first", work, first=True)])
        result: T = found
        return result

    def settings(self, **more: Any) -> dict[str, Any]:
        """What results depend on, as JSON types: `more`, and what there is to know about the workers."""
        machine = self.first(_machine)
        return {"kind": self.kind, **more, "workers": self.pool.count, "machine": machine, **self.pool.identity}

    def journal(self, name: str, settings: dict[str, Any], *, shape: Shape = dict) -> Journal:
        """A journal in the folder. Says so where it holds something to go on from."""
        journal = Journal(self.out / name, settings, restart=self._config.restart, shape=shape)
        if journal.entries:
            print(f"Going on from {journal.path}; --restart measures anew.", file=sys.stderr)
        return journal

    def do(
        self,
        calls: Iterable[Call],
        *,
        total: int,
        initial: int = 0,
        unit: str = "it",
        first: str | None = None,
        description: str | None = None,
        size: Callable[[Any], int] = lambda found: 1,
    ) -> Iterator[tuple[Call, Any]]:
        """Have calls done, as `Pool.run`, with a progress bar of `total` units, of which a result has its `size`.

        `first` stands before the bar until something is there, `description` then; `initial` units are known already.
        """
        quiet = None if total else True
        with tqdm(initial=initial, total=total, desc=first, unit=unit, file=sys.stderr, disable=quiet) as bar:
            for call, found in self.pool.run(calls):
                yield call, found
                bar.update(size(found))
                bar.set_description(description)

    def write(self, report: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """Write results.json, and texts by the names of their files."""
        results.write_json(self.out / "results.json", results.head(self.kind, self._config.command) | dict(report))
        for name, text in texts.items():
            results.write_text(self.out / name, text)


def _machine(worker: Worker) -> dict[str, Any]:
    del worker  # it is asked where it lives
    return results.machine()
