"""Commands of one process: killed at a random moment, repeated, and compared with an undisturbed run."""

import dataclasses
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models.io.table import dotted, variables_of
from models.llava import Llava
from tests.kills import on_ray
from tests.kills.processes import LIMIT_S, finish, start, until_hit, wait
from tests.lmms.local import CHOICE, TASK, make_task

RUNS = 4  # of a command, the killed one among them
DONE = "exists already"  # what a conversion says that was killed behind its last step


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, and what it leaves.

    Attributes:
      argv: the command, for a checkpoint and a place to write to.
      written: what must be the same in the end, whatever happened.
    """

    argv: Callable[[Path, Path], list[str]]
    written: Callable[[Path], Any]


def _module(name: str, *flags: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, flags)]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _compare(model: Path, out: Path) -> list[str]:
    flags = ["--limit=20", "--batch-size=4", "--repeats=2", "--seed=1", "--keep=5", "--methods", "fastv", "random"]
    return _module("experiments.compare", f"--model={model}", f"--out={out}", *flags)


def _compared(out: Path) -> Any:
    """All of results.json but what was timed."""
    report = json.loads((out / "results.json").read_text())
    rows = [
        {name: value for name, value in row.items() if name not in ("prefill_s", "own_s")} for row in report["rows"]
    ]
    return rows, report["samples"], report["failed"]


def _converted(dest: Path) -> Any:
    """The weights as they are read back, and the small files; Orbax's own hold dates. Nothing may lie beside them."""
    llava = Llava.from_pretrained(dest)
    weights = {dotted(path): np.asarray(value[...]).tobytes() for path, value in variables_of(llava).items()}
    small = {path.name: path.read_bytes() for path in dest.iterdir() if path.name in ("config.json", "tokenizer.json")}
    return weights, small, [path.name for path in dest.parent.iterdir()]


def _convert(model: Path, out: Path) -> list[str]:
    out.mkdir(exist_ok=True)
    return _module("models.convert", model, out / "dest")


def _train(model: Path, out: Path) -> list[str]:
    flags = [f"--work={out / 'work'}", f"--dest={out / 'model'}", "--pool=4", "--questions=2"]
    return _module("tests.kills.small_train", *flags)


def _reproduce(model: Path, out: Path) -> list[str]:
    """Both kinds of requests; needs lmms-eval."""
    task = out.parent / "task"
    if not task.exists():
        make_task(task, 12)
    flags = ["--keep", 5, 3, "--information=default", "--batch-size=2", "--limit=24", f"--out={out}"]
    return _module("experiments.reproduce", f"--model={model}", f"--include={task}", "--tasks", TASK, CHOICE, *flags)


def _reproduced(out: Path) -> Any:
    """Every file, but for the command in results.json, which names the folder, and the date."""
    files = _files(out)
    report = json.loads(files.pop("results.json"))
    return files, {name: value for name, value in report.items() if name not in ("command", "date")}


JOBS = {
    "eval": Job(on_ray.command, on_ray.samples),
    "questions": Job(on_ray.command_on_file, on_ray.written),
    "compare": Job(_compare, _compared),
    "convert": Job(_convert, lambda out: _converted(out / "dest")),
    "train": Job(_train, lambda out: _files(out / "model")),
}

NEEDS_LMMS_EVAL = {"reproduce": Job(_reproduce, _reproduced)}


def kill_once(argv: list[str], after: float, **more: str) -> dict[str, Any]:
    """Start a command, kill it after so many seconds, and repeat it until it has ended well, or finds all done."""
    process = start(argv, **more)
    lasted = wait(process, min(after, LIMIT_S))
    hit = process.poll() is None
    if hit:
        os.killpg(process.pid, signal.SIGKILL)
    status, _, err = finish(process)
    runs = 1
    while status != 0 and runs < RUNS:
        status, _, err = finish(start(argv, **more))
        runs += 1
        if DONE in err:
            status = 0
    return {"hit": hit, "after": round(lasted, 2), "status": status, "runs": runs, "err": err if status else ""}


def kill_many(name: str, kills: int, generator: random.Random, model: Path) -> Iterator[dict[str, Any]]:
    """Kill a command of `JOBS` again and again; says how each try ended.

    Args:
      name: of the command; those of `NEEDS_LMMS_EVAL` need an environment that has it.
      kills: how many; compiled programs are kept from one try to the next, whoever was killed as they were written.
      generator: of the moments.
      model: the checkpoint that it works with.

    Yields:
      What became of each try; `same` says whether it left what an undisturbed run leaves.
    """
    job = (JOBS | NEEDS_LMMS_EVAL)[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cache = {
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        began = time.monotonic()
        status, _, err = finish(start(job.argv(model, folder / "whole"), **cache))
        assert status == 0, err
        span, wanted = time.monotonic() - began, job.written(folder / "whole")

        def once(number: int, after: float) -> dict[str, Any]:
            out = folder / f"try-{number}"
            found = kill_once(job.argv(model, out), after, **cache)
            return {"command": name, **found, "same": found["status"] == 0 and job.written(out) == wanted}

        yield from until_hit(once, kills, span, generator)
