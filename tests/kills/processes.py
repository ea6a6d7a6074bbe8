"""Processes that are started in order to be killed, and what is left of them."""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_S = 300  # of one run; far more than is needed, so that a test fails and does not hang


def environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def start(argv: list[str], **more: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell does; `more` is for its environment."""
    return subprocess.Popen(
        argv,
        cwd=ROOT,
        env=environment() | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait(process: subprocess.Popen[str], seconds: float) -> float:
    """So long, or until it ends; gives how long that was."""
    began = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return time.monotonic() - began


def until_hit(
    once: Callable[[int, float], dict[str, Any]], kills: int, span: float, generator: random.Random
) -> Iterator[dict[str, Any]]:
    """Try after try, until so many have hit.

    Args:
      once: one of them: takes its number and the moment, and says whether the kill was a "hit", and "after" how long.
      kills: how many hits.
      span: seconds that moments are drawn from; a try whose command ended before its moment shortens it to that.
      generator: of the moments.
    """
    hits = number = 0
    while hits < kills:
        found = once(number, generator.uniform(0, span))
        number += 1
        if found["hit"]:
            hits += 1
        else:
            span = found["after"]
        yield found


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    return process.returncode, out, err


def descendants(pid: int) -> dict[int, str]:
    """Process ids below one, with their titles."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_text(errors="replace").replace("\0", " ")
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(path.name)] = title
        except OSError:
            pass
    found, todo = {}, [pid]
    while todo:
        above = todo.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found |= {child: titles[child] for child in below}
        todo += below
    return found


def alive(pids: dict[int, str]) -> dict[int, str]:
    """Those that are still there, and still the same."""
    left = {}
    for pid, title in pids.items():
        try:
            now = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if now and (now == title or now.startswith("ray::")):
            left[pid] = now
    return left


def left_over(family: dict[int, str], patience: float) -> dict[int, str]:
    """Those that do not end by themselves."""
    deadline = time.monotonic() + patience
    while (left := alive(family)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left
