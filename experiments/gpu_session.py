"""All measurements that need an NVIDIA GPU, in one go: minutes of such a machine are few.

Runs one command after the other, each in a process of its own with its own budget of seconds: the tests that need a
GPU, the benchmark of LLaVA-1.5-7B at batch 1 and 8 against transformers, the routes to the information score, and how
many rows fit. results.json is written anew after every step, with what each printed and found. What takes longer than
its budget is ended; what has no time left is not begun; whatever was found until then is kept. Exit status 0 says that
every step was done.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.core import cli, results
from experiments.core.results import format_seconds, format_table
from models.errors import CommandError

LIMIT_S = 530
_LEAST_S = 5.0  # nothing is begun for less
_GRACE_S = 5.0  # between asking a step to end and ending it
_TAIL = 8000  # characters of what a step printed
_ROOT = Path(__file__).parents[1]
_LOOK = "import jax; d = jax.devices('gpu'); print(d[0].device_kind, len(d), sep=';')"


class Step(NamedTuple):
    """One command: what it is called, how many seconds it may take, and what stands behind `python`.

    "{out}" in `argv` is the step's own folder.
    """

    name: str
    budget: float
    argv: tuple[str, ...]


_BENCH = ("-m", "experiments.bench", "--preset=llava-1.5-7b", "--dtype=bfloat16", "--out={out}")
_ROUTES = ("-m", "experiments.studies.information_routes", "--limit=2", "--seeds=1", "--widths", "1024", "--out={out}")
_SPEED = (*_BENCH, "--against=transformers", "--no-largest-batch")
# What would be missed most comes first.
STEPS = (
    Step("tests", 100, ("-m", "pytest", "-m", "gpu", "-n", "0", "-q", "tests/test_gpu.py")),
    Step("batch-1", 140, (*_SPEED, "--batch-size=1", "--repeats=7")),
    Step("routes", 60, _ROUTES),
    Step("batch-8", 110, (*_SPEED, "--batch-size=8", "--repeats=3")),
    Step("largest-batch", 120, (*_BENCH, "--batch-size=1", "--max-new-tokens=1024", "--repeats=1", "--largest-batch")),
)


def look() -> dict[str, Any]:
    """The GPU that JAX sees, asked in a process of its own: this one must not hold its memory.

    Raises:
      CommandError: it sees none.
    """
    asked = subprocess.run([sys.executable, "-c", _LOOK], cwd=_ROOT, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise CommandError("JAX sees no NVIDIA GPU here; on a machine with one: pip install -e '.[test,cuda]'")
    kind, count = asked.stdout.strip().splitlines()[-1].split(";")
    return {"device": kind, "devices": int(count)}


def _run(step: Step, seconds: float, folder: Path) -> dict[str, Any]:
    """Run a step for so many seconds at most, and end all that it started; what it came to."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").unlink(missing_ok=True)  # of an earlier session
    argv = [part.replace("{out}", str(folder.resolve())) for part in step.argv]
    began = time.monotonic()
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *argv], cwd=_ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            for kind, patience in ((signal.SIGINT, _GRACE_S), (signal.SIGKILL, None)):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, kind)
                    process.wait(patience)
    found = {
        "step": step.name,
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "budget": step.budget,
        "exit": process.returncode,
        "command": " ".join(["python", *step.argv]),
        "output": (folder / "output.txt").read_text(errors="replace")[-_TAIL:],
    }
    with contextlib.suppress(OSError, ValueError):
        found["results"] = json.loads((folder / "results.json").read_text())
    return found


def session(*, limit: float, out: Path, about: dict[str, Any], command: str) -> bool:
    """Do `STEPS` in order within `limit` seconds, write results.json after each; returns whether all were done.

    `about` is the machine; each step has a folder of its own in `out`.
    """
    deadline = time.monotonic() + limit
    found: list[dict[str, Any]] = [{"step": step.name, "status": "not begun"} for step in STEPS]
    value = {
        **results.head("gpu-session", command),
        "limit_s": limit,
        "machine": about,
        "versions": results.versions(),
        "steps": found,
    }
    path = results.claim(out, "gpu-session")
    path.parent.mkdir(parents=True, exist_ok=True)
    results.write_json(path, value)
    for index, step in enumerate(STEPS):
        left = deadline - time.monotonic() - _GRACE_S
        if left < _LEAST_S:
            break
        print(f"{step.name}: {' '.join(['python', *step.argv])}", flush=True)
        found[index] = _run(step, min(step.budget, left), out / step.name)
        results.write_json(path, value)
        print(f"  {found[index]['status']} after {format_seconds(found[index]['seconds'])}", flush=True)
    rows = [[one["step"], one["status"], format_seconds(one.get("seconds", 0))] for one in found]
    print(f"\n{format_table(['step', 'status', 'took'], rows)}\n\nAll that was found: {path}")
    return all(one["status"] == "done" for one in found)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, measure, and print what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="python -m experiments.gpu_session", description=__doc__)
    parser.add_argument(
        "--seconds", type=cli.positive, default=LIMIT_S, metavar="COUNT", help="for all steps (default: %(default)s)"
    )
    cli.add_out_flag(parser, "results/gpu-session")

    def body(flags: argparse.Namespace) -> int:
        command = " ".join(["python -m experiments.gpu_session", *argv])
        return 0 if session(limit=flags.seconds, out=flags.out, about=results.host() | look(), command=command) else 1

    return cli.run(body, parser, argv, interrupted="interrupted; results.json holds what was done")


if __name__ == "__main__":
    sys.exit(main())
