"""Workers on Ray: one actor each, replaced when it is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from experiments.core.journal import differing
from experiments.core.results import cores
from experiments.core.workers import Call, Worker
from models import interrupts
from models.errors import CheckpointError, CommandError, ConfigError, one_line

ATTEMPTS = 4  # at one call, or at starting a worker, before its loss is no accident
_REACH_S = 10
_STORE_BYTES = 80 << 20  # what goes between processes is small
_EXPECTED = (CommandError, ConfigError, CheckpointError, OSError)  # what a user can put right


class _Failure:
    """Goes back in place of a result. An exception might not survive pickling."""

    def __init__(self, error: Exception):
        kind = "" if isinstance(error, _EXPECTED) else f"{type(error).__name__}: "
        self.text = kind + one_line(error)


class _Host:
    """The actor: a process that holds one worker."""

    def start(self, make: Callable[[], Worker]) -> Mapping[str, Any] | _Failure:
        """Make the worker."""
        try:
            self._worker = make()
            return self._worker.identity()
        except Exception as error:
            return _Failure(error)

    def do(self, work: Callable[[Any], Any]) -> Any:
        """Have it do something."""
        try:
            return work(self._worker)
        except Exception as error:
            return _Failure(error)


class _Place:
    """Where a worker is, and after its loss the next one."""

    actor: Any  # its process
    doing: ray.ObjectRef | None  # what comes of what it does now; None when it is idle
    call: Call | None  # what it does now; None when it is starting or idle


class RayPool:
    """See `experiments.core.workers.Pool`; a context manager, which starts Ray here or joins a cluster.

    Args:
      make: makes a worker.
      workers: how many.
      address: of a cluster; None starts Ray on this machine for the pool's time, unless this process has joined one.

    Raises:
      CommandError: the cluster cannot be reached or is too small; workers differ in their identity; a worker raised
        something; or `ATTEMPTS` workers were lost at one call, or one after the other as they started.
    """

    def __init__(self, make: Callable[[], Worker], workers: int, address: str | None):
        self.count = workers
        self.identity: Mapping[str, Any] = {}
        self._make, self._address = make, address
        self._places: list[_Place] = []
        self._for_first, self._for_any = deque[Call](), deque[Call]()
        self._losses: Counter[Call | None] = Counter()  # None is for starting
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RayPool:
        with self._stack:
            # Ray prints what became of lost workers, whatever it is told; it does not belong to a command's output.
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            if not ray.is_initialized():
                self._stack.callback(_disconnect)
                _connect(self._address, self.count)
            self._stack.callback(self._end)
            self._actor = ray.remote(_Host).options(**_options(self.count))
            for _ in range(self.count):
                self._start(place := _Place())
                self._places.append(place)
            while not self.identity:
                self._wait()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Any]]:
        """See `experiments.core.workers.Pool`."""
        calls = list(calls)
        self._for_first = deque(call for call in calls if call.first)
        self._for_any = deque(call for call in calls if not call.first)
        given = 0
        while given < len(calls):
            self._hand_out()
            if done := self._wait():
                given += 1
                yield done

    def _hand_out(self) -> None:
        """Give every idle worker something to do."""
        for number, place in enumerate(self._places):
            line = self._for_first if number == 0 and self._for_first else self._for_any
            if place.doing is None and line:
                place.call = line.popleft()
                place.doing = place.actor.do.remote(place.call.work)

    def _wait(self) -> tuple[Call, Any] | None:
        """Wait until one worker has started, is lost, or has done a call; gives the call with its result."""
        places = {place.doing: place for place in self._places if place.doing is not None}
        (ready,), _ = ray.wait(list(places), num_returns=1)
        place = places[ready]
        call, place.call, place.doing = place.call, None, None
        try:
            found = ray.get(ready)
        except RayTaskError as error:
            raise CommandError(f"a worker failed: {str(error.cause or error).splitlines()[0]}") from error
        except RayError as error:
            self._replace(place, call, error)
            return None
        if isinstance(found, _Failure):
            raise CommandError(found.text)
        if call is not None:
            return call, found
        self._losses[None] = 0
        self.identity = self.identity or found
        if changed := differing(self.identity, found):
            raise CommandError(f"the machines of the cluster differ in {', '.join(changed)}")
        return None

    def _start(self, place: _Place) -> None:
        place.actor = self._actor.remote()
        place.call, place.doing = None, place.actor.start.remote(self._make)

    def _replace(self, place: _Place, call: Call | None, error: RayError) -> None:
        """Start another worker in place of a lost one, and let any of them do what it was doing."""
        self._losses[call] += 1
        if self._losses[call] == ATTEMPTS:
            when = f"at {call.key!r}" if call else "while they started"
            raise CommandError(f"{ATTEMPTS} workers were lost {when}: {one_line(error)}") from error
        tqdm.write("A worker was lost; another takes over what it was doing.", file=sys.stderr)  # above any bar
        if call:
            (self._for_first if call.first else self._for_any).appendleft(call)
        ray.kill(place.actor)  # it may only be out of reach
        self._start(place)

    def _end(self) -> None:
        for place in self._places:
            ray.kill(place.actor)


def _connect(address: str | None, workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    here: dict[str, Any] = {
        "num_cpus": max(workers, cores()),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
    }
    try:
        if address:
            _reach(address)
        with interrupts.defer(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # JAX's, of forks: those here run other programs at once
            ray.init(
                address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **({} if address else here)
            )
    except (OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address} cannot be joined" if address else "Ray cannot be started here"
        raise CommandError(f"{where}: {one_line(error)}") from error


def _disconnect() -> None:
    with interrupts.defer():
        ray.shutdown()


def _reach(address: str) -> None:
    """Find out at once whether anybody is there: Ray tries for minutes, and says so line by line."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()


def _options(workers: int) -> dict[str, Any]:
    """What each actor gets: one device, or a share of the cores.

    Raises:
      CommandError: there are too few.
    """
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        gpus = 0
    if gpus and gpus < workers:
        raise CommandError(f"{workers} workers need a GPU each, and Ray knows of {gpus} (none if JAX_PLATFORMS=cpu)")
    if cpus < workers:
        raise CommandError(f"{workers} workers need a CPU each, and Ray knows of {cpus}")
    share = str(cpus // workers)
    threads = {name: os.environ.get(name, share) for name in ("PJRT_NPROC", "OPENBLAS_NUM_THREADS")}
    return {
        "num_cpus": 1,
        "num_gpus": 1 if gpus else 0,
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": threads},
    }
