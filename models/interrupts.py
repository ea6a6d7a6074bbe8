"""Ctrl-C in a command: one line at any moment, and never lost. Nothing here runs when `models` is imported."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_AGAIN_S = 0.05


def end_at_once_while_importing() -> None:
    """Have Ctrl-C end the process with one line, until `redeliver` begins.

    A command calls this before its other imports, when it is run as a program: an exception inside the import of a C
    extension becomes a traceback at best, and a crash or nothing at worst. Where Ctrl-C is ignored, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: Any) -> None:
    os.write(2, b"\ninterrupted before it began\n")
    os._exit(130)


@contextlib.contextmanager
def redeliver(said: str = "") -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt, and send it again where Python dropped it.

    Python prints and forgets an exception from a callback of the garbage collector or from a finalizer. JAX has such a
    callback, which runs often: without this, about one interrupt in twenty would be ignored.

    In a program (see `end_at_once_while_importing`), a second Ctrl-C ends the process at once and says `said`, whatever
    it hits: cleaning up may take seconds, and an exception in the middle of it would show.
    """
    if program := signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _First(said.encode(errors="replace")))
    before = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            if isinstance(handler := signal.getsignal(signal.SIGINT), _Again):
                signal.signal(signal.SIGINT, handler.first)
            threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if program:  # what the caller says now is the last word, also while Python and XLA shut down
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.unraisablehook = before


@dataclasses.dataclass(frozen=True)
class _First:
    """Handles the first Ctrl-C of a program, which says `said` in the end."""

    said: bytes

    def __call__(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, _Again(self))
        raise KeyboardInterrupt


@dataclasses.dataclass(frozen=True)
class _Again:
    """Handles the second."""

    first: _First

    def __call__(self, number: int, frame: Any) -> None:
        os.write(2, self.first.said)
        os._exit(130)


@contextlib.contextmanager
def defer() -> Iterator[None]:
    """Have Ctrl-C wait until the body is done; a second one does not wait.

    For a body that an exception would leave half done in a C extension, which may then crash when the process ends.
    Does nothing outside the main thread, or where Ctrl-C does not raise KeyboardInterrupt.
    """
    before = signal.getsignal(signal.SIGINT)
    raises = before is signal.default_int_handler or isinstance(before, _First)
    if not raises or threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)
