"""Evaluations on Ray: a worker, the driver, or both are killed, and nobody is left over."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from experiments.data.scenes import make_scene
from tests.commands import save_checkpoint
from tests.kills.processes import LIMIT_S, descendants, finish, left_over, start, until_hit, wait

TARGETS = ("worker", "driver", "both")
LONG = "--limit=800"  # so that many a moment falls into the asking, and not all into the start
GONE_S = 120  # for what a killed driver leaves behind to end; Ray's agents look for it a minute long


def command(model: Path, out: Path, *more: str) -> list[str]:
    """An evaluation of a few seconds; later flags count."""
    flags = [f"--model={model}", f"--out={out}", "--keep=5", "--limit=40", "--batch-size=2", "--seed=1"]
    return [sys.executable, "-m", "experiments.eval", *flags, *more]


def command_on_file(model: Path, out: Path, *more: str) -> list[str]:
    """The same on a question file, which is written where it is not there yet."""
    path = model.parent / "questions.jsonl"
    if not path.exists():
        image = model.parent / "scene.png"
        Image.fromarray(make_scene("test", 0, 1).image).save(image)
        rows = ({"question_id": i, "image": image.name, "text": f"what is {i} " * (i % 3)} for i in range(2400))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"--questions={path}", f"--images={model.parent}", f"--answers={out / 'a.jsonl'}", "--max-new-tokens=8"]
    return command(model, out, *files, *more)


def samples(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["samples"]


def written(out: Path) -> tuple[list[dict], dict[str, bytes]]:
    """All samples, and the files of answers where a question file was asked."""
    return samples(out), {path.name: path.read_bytes() for path in out.glob("a-*.jsonl")}


def workers_of(pid: int) -> list[int]:
    return [child for child, title in descendants(pid).items() if title.startswith("ray::_Host")]


def kill_once(argv: list[str], out: Path, target: str, after: float, generator: random.Random) -> dict:
    """One try: kill `target` so many seconds after the first worker appeared; gives what became of it."""
    process = start(argv)
    deadline = time.monotonic() + LIMIT_S
    while not workers_of(process.pid) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    lasted = wait(process, after)
    family, workers = descendants(process.pid), workers_of(process.pid)
    hit = []
    if target != "driver" and workers:
        hit.append(generator.choice(workers))
    if target != "worker" and process.poll() is None:
        hit.append(process.pid)
    for pid in hit:
        os.kill(pid, signal.SIGKILL)
    status, _, err = finish(process)
    journal = out / "answers.jsonl"
    before = len(journal.read_text().splitlines()) - 1 if journal.exists() else 0
    runs = 1
    while status != 0 and runs < 3:
        status, _, err = finish(start(argv))
        runs += 1
    return {
        "target": target,
        "after": round(lasted, 2),
        "hit": len(hit),
        "status": status,
        "runs": runs,
        "batches then": before,
        "err": err if status else "",
        "family": family,
    }


def kill_many(kills: int, seed: int, folder: Path, command: Callable[..., list[str]] = command) -> list[dict]:
    """Try after try, the targets by turns; says how each ended."""
    generator = random.Random(seed)
    folder.mkdir(exist_ok=True)
    model = save_checkpoint(folder / "model")
    status, _, err = finish(start(command(model, folder / "whole", LONG)))
    assert status == 0, err
    wanted = written(folder / "whole")
    began = time.monotonic()
    status, _, err = finish(start(command(model, folder / "timed", LONG, "--workers=2")))
    assert status == 0, err
    assert written(folder / "timed") == wanted
    span = max(2.0, time.monotonic() - began - 5)  # Ray takes about five seconds to have the first worker

    def once(number: int, after: float) -> dict:
        out = folder / f"try-{number}"
        argv = command(model, out, LONG, "--workers=2")
        found = kill_once(argv, out, TARGETS[number % 3], after, generator)
        return found | {"same": found["status"] == 0 and written(out) == wanted}

    tries = []
    for found in until_hit(once, kills, span, generator):
        tries.append(found)
        print({key: value for key, value in found.items() if key != "family"}, flush=True)
    for found in tries:
        found["left"] = left_over(found["family"], GONE_S)
    return tries
