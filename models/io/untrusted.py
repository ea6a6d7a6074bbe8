"""Guards around files of other people: special files, other libraries' parsers, and templates that run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 2**28
"""Of a file that is read whole: the largest tokenizer.json has 2**25."""
_AGAIN_S = 0.05  # between two attempts to stop what takes too long
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def file_problem(path: Path) -> str | None:
    """The end of the sentence "PATH ...", if it cannot be read; found without opening it, as a pipe would block."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "is a link to nothing" if path.is_symlink() else "does not exist (no such file)"
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a null byte
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if not stat.S_ISREG(mode):
        return f"is a {_KINDS.get(stat.S_IFMT(mode), 'device')}, not a file"
    return None if os.access(path, os.R_OK) else "cannot be read by this user (permission denied)"


def check_file(path: Path, raising: type[Exception], *, inside: Sequence[Path] = (), most: int = MOST_BYTES) -> None:
    """Look at a file that anybody may have made, without opening it.

    Args:
      path: the file.
      raising: the error to raise, made from one line.
      inside: folders, one of which it must be in, links followed; none are given where any place will do.
      most: bytes that it may have.

    Raises:
      `raising`: it is not a regular file, too large, or a link out of the folders.
    """
    if problem := file_problem(path):
        raise raising(f"{path} {problem}")
    if inside and not any(path.resolve().is_relative_to(folder.resolve()) for folder in inside):
        raise raising(f"{path} is a link out of {inside[0]}; put the file itself there")
    if (size := path.stat().st_size) > most:
        raise raising(f"{path} has {size} bytes; at most {most} are read")


def read_bytes(path: Path, raising: type[Exception], *, inside: Sequence[Path] = (), most: int = MOST_BYTES) -> bytes:
    """The content of a file that anybody may have made. Arguments and errors as in `check_file`."""
    check_file(path, raising, inside=inside, most=most)
    return path.read_bytes()


def reason(error: BaseException) -> str:
    """An exception of another library as part of a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def parsing(what: object, raising: type[Exception], problem: str = "cannot be read") -> Iterator[None]:
    """Turn whatever the body's parser raises for bad input into one line that names the input.

    Warnings, logs and prints, those of C and Rust too, are not shown. The body calls another library on a user's input
    and does nothing else: parsers raise anything for damaged input, so that no list of exceptions is complete.

    Args:
      what: the file or folder, for the message.
      raising: the error to raise, made from the message. If the body raises one itself, it is passed on.
      problem: ends the sentence, before the parser's own words.
    """
    try:
        with _silence():
            yield
    except raising:
        raise
    except BaseException as error:
        # Rust's panics are exceptions of this name, but not of the class `Exception`.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise raising(f"{what} {problem} ({reason(error)})") from error
        raise


def read_json(path: Path, raising: type[Exception]) -> dict[str, Any]:
    """The JSON object in a file; one line if it is not a regular file or not a JSON object."""
    content = read_bytes(path, raising)
    with parsing(path, raising):
        found = json.loads(content.decode())
        if not isinstance(found, dict):
            raise raising(f"{path} cannot be read (it is not a JSON object)")
        return found


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop warnings, logs, and what is written to the file descriptors of standard output and error."""
    level, kept = logging.root.manager.disable, dict[int, int]()
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed
            kept[number] = os.dup(number)
    if sys.stdout is not None:
        sys.stdout.flush()  # what was printed before
    logging.disable()
    try:
        with warnings.catch_warnings(), open(os.devnull, "wb") as nowhere:
            warnings.simplefilter("ignore")
            for number in kept:
                os.dup2(nowhere.fileno(), number)
            yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        logging.disable(level)


@contextlib.contextmanager
def limited(seconds: float, more_bytes: int) -> Iterator[None]:
    """Limit a body that runs code from a file, such as a template: Jinja's sandbox limits neither time nor memory.

    Args:
      seconds: of processor time, then TimeoutError; in the main thread only.
      more_bytes: of memory beyond what the process has, then MemoryError; on Linux only.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    def hook(dropped: Any) -> None:
        if dropped.exc_type is not TimeoutError:  # Python drops an exception from a callback of the garbage collector
            reported(dropped)

    reported = sys.unraisablehook
    timed = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    before = signal.signal(signal.SIGVTALRM, stop) if timed else None
    try:
        if timed:  # again and again, as one may be dropped
            sys.unraisablehook = hook
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN_S)
        with _memory(more_bytes):
            yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
            sys.unraisablehook = reported


@contextlib.contextmanager
def _memory(more_bytes: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more_bytes
    limits = [limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
