"""One run over several processes: who they are, and how they talk.

Each process works alone, on its own devices, at its own pace; they meet only to compare settings and to hand over
results. Both are text, so it goes through the key-value store of JAX's coordination service, which process 0 holds, and
not through collectives: those need equal shapes and, on a CPU, everybody to arrive within 30 seconds.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax._src.distributed import global_state  # the client has no public name; Orbax takes it from here too

from experiments.cli import CommandError, one_line, positive
from experiments.results import differing

JOIN_S = 300  # for all processes to come
HEARTBEAT_S = 100  # after so long without a sign of life of one process, JAX ends the others
LEAVE_S = 60  # for the others to stop, after one failed
PATIENCE_S = 1800  # for one message: a model that loads, a batch
_POLL_MS = 1000  # so that Ctrl-C and the failure of another process are seen
_FAILED = "failed"


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text != "auto" and not (host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is neither HOST:PORT, such as 10.0.0.1:1234, nor auto")
    return text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--coordinator`, `--processes` and `--process`."""
    group = parser.add_argument_group(
        "several processes",
        "Start the same command once per process, on one machine or several; each needs a device of its own "
        "(on a machine with several GPUs by CUDA_VISIBLE_DEVICES). Process 0 prints and writes the result.",
    )
    group.add_argument(
        "--coordinator",
        type=_address,
        metavar="HOST:PORT|auto",
        help="where process 0 is reached, at any free port; auto: JAX asks the cluster (Slurm, Open MPI, Cloud TPU, "
        "Kubernetes), also for the other two flags",
    )
    group.add_argument("--processes", type=positive, metavar="COUNT", help="how many there are")
    group.add_argument("--process", type=int, metavar="INDEX", help="which one this is: 0 to COUNT - 1")


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse flags that do not go together.

    Raises:
      CommandError: says which.
    """
    numbers = (flags.processes, flags.process)
    if flags.coordinator == "auto":
        if numbers != (None, None):
            raise CommandError("--coordinator=auto finds out --processes and --process; leave them out")
    elif None in (flags.coordinator, *numbers):
        if (flags.coordinator, *numbers) != (None, None, None):
            raise CommandError("--coordinator, --processes and --process go together; only --coordinator=auto is alone")
    elif not 0 <= flags.process < flags.processes:
        raise CommandError(f"--process={flags.process}: with --processes={flags.processes} it is 0 to COUNT - 1")


class Group:
    """The processes of a run, seen from one of them.

    Args:
      client: of JAX's coordination service; None for a process that is alone.

    Attributes:
      index: of this process.
      count: of processes.
    """

    def __init__(self, client: Any = None, *, index: int = 0, count: int = 1):
        self._client, self.index, self.count = client, index, count
        self._told: dict[str, Any] = {}

    def owner(self, number: int) -> int:
        """The process whose batch number `number` is. They take turns, so that more batches change nothing before."""
        return number % self.count

    def check(self) -> None:
        """Stop when another process has failed.

        Raises:
          CommandError: says which, and why.
        """
        for _, text in self._client.key_value_dir_get(_FAILED) if self._client else ():
            raise CommandError(text)

    def tell(self, key: str, value: Any) -> None:
        """Leave a value of JSON types for all, once per key."""
        self._told[key] = value
        if self._client:
            self._client.key_value_set(f"{self.index}/{key}", json.dumps(value))

    def hear(self, process: int, key: str) -> Any:
        """What a process told, as soon as it is there.

        Raises:
          CommandError: a process failed, or this one kept silent for `PATIENCE_S`.
        """
        if process == self.index:
            return self._told[key]
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.check()
            try:
                return json.loads(self._client.blocking_key_value_get(f"{process}/{key}", _POLL_MS))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        raise CommandError(f"process {process} kept silent for {PATIENCE_S} s ({key})")

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Compare settings of JSON types with those of process 0.

        Raises:
          CommandError: they differ; says in what.
        """
        self.tell("settings", settings)
        for process in range(1, self.count):
            first, other = (self.hear(number, "settings") for number in (0, process))
            if changed := differing(first, other):
                raise CommandError(f"process {process} has other settings than process 0: {', '.join(changed)}")

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process ends. Only the first failure counts; the others follow from it."""
        text = f"process {self.index} failed: {one_line(error) or type(error).__name__}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one already, or nobody to tell
            self._client.key_value_set(f"{_FAILED}/first", text)


def _join(flags: argparse.Namespace) -> None:
    """Meet the others. jaxlib ends a process that cannot by a signal, so what can be known before is looked at here."""
    where: dict[str, Any] = {}
    if flags.coordinator != "auto":
        host, _, port = flags.coordinator.rpartition(":")
        where = {
            "coordinator_address": flags.coordinator,
            "num_processes": flags.processes,
            "process_id": flags.process,
        }
        if flags.process == 0:
            try:
                socket.create_server(("", int(port))).close()
            except OSError as error:
                raise CommandError(f"--coordinator={flags.coordinator}: {error.strerror}") from error
            print(f"Waiting up to {JOIN_S} s for {flags.processes} processes.", file=sys.stderr)
        else:
            _reach(host.strip("[]"), int(port))
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=JOIN_S,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=LEAVE_S,
        )
    except (ValueError, RuntimeError) as error:
        raise CommandError(f"--coordinator={flags.coordinator}: {error}") from error
    jax.local_devices()  # the processes exchange a list of their devices now, while all of them are there


def _reach(host: str, port: int) -> None:
    deadline = time.monotonic() + JOIN_S
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise CommandError(f"no process 0 at {host}:{port} for {JOIN_S} s: {error}") from error
            time.sleep(0.2)


def together(body: Callable[[argparse.Namespace, Group], None]) -> Callable[[argparse.Namespace], None]:
    """Work for the processes that the flags describe, from work that is also told which of them it is done by."""

    def run(flags: argparse.Namespace) -> None:
        with _joined(flags) as group:
            body(flags, group)

    return run


@contextlib.contextmanager
def _joined(flags: argparse.Namespace) -> Iterator[Group]:
    """The processes, from before the first use of a device until all are done.

    If the body fails in one process it fails in all, at the latest when they hear or check next.

    Yields:
      All of them; a group of one without flags.

    Raises:
      CommandError: the processes do not come together, or another one failed.
    """
    check_flags(flags)
    if flags.coordinator is None:
        yield Group()
        return
    _join(flags)
    group = Group(global_state.client, index=global_state.process_id, count=global_state.num_processes)
    try:
        yield group
        group.tell("end", None)
        if group.index:
            group.hear(0, "end")
    except BaseException as error:
        group.fail(error)
        atexit.register(jax.distributed.shutdown)  # it waits for the others; the reason is printed before
        raise
    jax.distributed.shutdown()
