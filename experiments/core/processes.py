"""Processes that help this one: started afresh, deaf to Ctrl-C, gone when it is gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import jax


def helpers(count: int, begin: Callable[..., None] | None = None, *args: Any) -> ProcessPoolExecutor:
    """A pool of them. They are spawned: a fork of JAX's threads may wait for ever.

    Args:
      count: how many.
      begin: what each does first, with `args`; can be pickled, as these can.
      *args: see there.
    """
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(begin, args))


def start(pool: ProcessPoolExecutor) -> Future[None]:
    """Start a pool; done when one of its processes is there.

    Processes that start now never see Ctrl-C, which a terminal sends to all; this one sees it afterwards.
    """
    with _interrupts_held_back():
        return pool.submit(_nothing)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(begin: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    jax.config.update("jax_platforms", "cpu")  # an accelerator is the parent's
    if begin:
        begin(*args)


def _end_with(parent: Any) -> None:
    """So that nothing outlives a parent that was killed."""
    parent.join()
    os._exit(1)


def _nothing() -> None:
    pass
