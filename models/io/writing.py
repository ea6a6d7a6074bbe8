"""Folders that one process writes at a time, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock

_LOCK = ".writer.lock"
_NAMED_S = 1.0  # between taking a lock and saying so a process needs far less


class InUseError(OSError):
    """Another process is writing there. The message says which."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to errors of writing: the system does not name a file that is open."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file in one step, only if the body succeeds.

    Yields:
      A unique path to write to, in the same folder, which must exist, and with the same ending.
    """
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.part{path.suffix}")
    try:
        with naming(path):
            yield part
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(target: Path, lock: Path) -> Iterator[None]:
    """Lock a target against other writers during the body; the lock ends with this process, however it ends.

    Args:
      target: what is written, for the message.
      lock: the file to lock, in a folder that exists. A file beside it names the holder.

    Raises:
      InUseError: another process holds the lock.
    """
    guard, holder = filelock.FileLock(lock, blocking=False), lock.with_suffix(".json")
    try:
        guard.acquire()
    except filelock.Timeout:
        raise InUseError(
            f"{target} is being written by {_name(holder)}; wait until that is done, or write somewhere else"
        ) from None
    try:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        with replacing(holder) as part:
            part.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}))
        yield
    finally:
        # Before the release: a process that has opened the file by then finds that it has no name, and opens it anew.
        for path in (holder, lock):
            with contextlib.suppress(OSError):  # Windows keeps what is open
                path.unlink()
        guard.release()


def _name(holder: Path) -> str:
    deadline = time.monotonic() + _NAMED_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            who = json.loads(holder.read_text())
            return f"process {who['process']} on {who['host']} since {who['since']}"
        time.sleep(0.02)
    return "another process"


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make a folder and lock it for this process; remove it at the end if it is empty. InUseError as `only_writer`."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with only_writer(folder, folder / _LOCK):
            for part in folder.glob(f".*.{'[0-9a-f]' * 32}.part*"):  # of a process that was killed
                part.unlink()
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
