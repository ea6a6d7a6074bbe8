"""Whole processes where memory, disk, descriptors or encodings are short. Linux only."""

import dataclasses
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.errors import CommandError
from tests.hostile.case import STARTING_S, Case
from tests.hostile.images import png

ROOT = Path(__file__).parents[2]
MORE_MEMORY = 2**30
"""Bytes that a refusal may take beyond a request that works."""
TWICE = 6
"""Evaluations that are interrupted twice."""
SOON_S = 3
"""Seconds of a processor that refusing a request takes after a command has started, for one that cannot fit."""
_LIMITING = (
    "import os, resource, sys; limits = eval(sys.argv[1]); "
    "[resource.setrlimit(what, (most, most)) for what, most in limits.items()]; os.execv(sys.argv[2], sys.argv[2:])"
)
_PLAIN = (
    "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
"""As users are, without PyTorch, which transformers imports where it finds it."""
GENERATE, EVAL = "experiments.generate", "experiments.eval"


@dataclasses.dataclass
class Processes:
    """Runs commands on a good checkpoint, and knows what an ordinary one takes.

    Attributes:
      model: the checkpoint.
      image: a good image.
      scratch: where commands may write.
      peak: bytes of the largest process that worked.
      start_s: seconds of a processor that a command takes before it does anything.
    """

    model: Path
    image: Path
    scratch: Path
    peak: int = 0
    start_s: float = 0.0

    def start(self) -> None:
        """Take the time of a command that only says what it is."""
        before = os.times()
        subprocess.run([sys.executable, "-m", GENERATE, "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        self.start_s = sum(
            getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system")
        )

    def run(
        self,
        module: str,
        argv: Sequence[str | bytes],
        *,
        limits: dict[int, int] | None = None,
        stdin: bytes = b"",
        stdout: int | None = None,
        soon: bool = False,
        **environment: str,
    ) -> None:
        """A command with limits; what it refuses in one line is raised; `soon` says that this must not take long."""
        command = [sys.executable, *(("-c", _PLAIN) if soon else ("-m",)), module, *argv]
        if limits:  # set by a process in between: JAX has threads here, and a fork of them may wait for ever
            command = [sys.executable, "-c", _LIMITING, repr(limits), *command]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,  # a file would count as disk
        ) as process:
            try:
                process.stdin.write(stdin)
                process.stdin.close()
                _, status, usage = os.wait4(process.pid, 0)  # the little that is said fits into the pipes
            except BaseException:
                process.kill()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
            peak = usage.ru_maxrss * 1024
            pipes = (process.stdout, process.stderr)
            said, error = (pipe.read().decode(errors="replace") if pipe else "" for pipe in pipes)
        if process.returncode == 0:
            self.peak = max(self.peak, peak)
            if not said and stdout is None:
                raise AssertionError("nothing was said")
            if "Traceback" in error or "Warning" in error:
                raise AssertionError(error[-500:])
            return
        if error.count("\n") != 1 or "Traceback" in error:
            raise AssertionError(f"status {process.returncode}, {said[-200:]!r}, {error[-500:]!r}")
        if self.peak and peak > self.peak + MORE_MEMORY:
            raise AssertionError(f"{peak / 2**30:.1f} GiB for a refusal: {error}")
        if soon and (took := _seconds(usage) - self.start_s) > SOON_S:
            raise AssertionError(f"{took:.1f} s of a processor after the start for a refusal: {error}")
        raise CommandError(error.rstrip("\n"))

    def interrupt(self, argv: Sequence[str], first_s: float, gap_s: float) -> None:
        """Press Ctrl-C twice while an evaluation runs: it says one line, and nothing is lost."""
        command = [sys.executable, "-m", EVAL, *argv]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            for wait in (first_s, gap_s):
                time.sleep(wait)
                process.send_signal(signal.SIGINT)
            _, said = process.communicate()
        lines = [line for line in said.splitlines() if line and not line.startswith(("Going on from", "\r"))]
        if process.returncode != 130 or len(lines) > 1 or "interrupted" not in said:
            raise AssertionError(f"status {process.returncode}: {said[-500:]!r}")


def _seconds(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def _twice(processes: Processes, argv: Sequence[str], out: Path, moments: tuple[float, float]) -> None:
    try:
        processes.interrupt(argv, *moments)
        processes.run(EVAL, argv)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def known(processes: Processes) -> Iterator[Case]:
    """All of them; the first says what an ordinary request takes."""
    model, image, scratch = f"--model={processes.model}", f"--image={processes.image}", processes.scratch
    ask = [model, image, "--prompt=Where?", "--keep=3", "--max-new-tokens=2"]
    narrow = scratch / "narrow.png"
    narrow.write_bytes(png(1, 60_000))
    pipe = scratch / "pipe"
    os.mkfifo(pipe)

    def case(name: str, module: str, argv: Sequence[str | bytes], want: str | None, says: str = "", **how) -> Case:
        return Case(name, lambda: processes.run(module, argv, **how), want, says, STARTING_S)

    def evaluating(name: str, argv: Sequence[str | bytes], want: str | None, says: str = "", **how) -> Case:
        """Its folder is removed, so that what is left elsewhere shows."""
        out = scratch / "out"

        def attempt() -> None:
            try:
                processes.run(EVAL, [model, "--limit=2", "--batch-size=2", "--keep=5", f"--out={out}", *argv], **how)
            finally:
                left = [path.name for path in out.rglob("*.part*")] if out.exists() else []
                for path in scratch.glob("out*"):
                    shutil.rmtree(path, ignore_errors=True)
                shutil.rmtree(os.fsencode(scratch) + b"/out-\xff", ignore_errors=True)
                if left:
                    raise AssertionError(f"left {left}")

        return Case(name, attempt, want, says, STARTING_S)

    no_file = {resource.RLIMIT_FSIZE: 64}
    yield Case("a start", processes.start, "worked", limit_s=STARTING_S)
    yield case("an ordinary question", GENERATE, ask, "worked")
    yield case("ASCII alone", GENERATE, ask, "worked", PYTHONIOENCODING="ascii", LC_ALL="C")
    yield case("a prompt that is not UTF-8", GENERATE, [*ask, b"--prompt=\xff\xfe"], "refused", "not UTF-8")
    yield case("10^8 new tokens", GENERATE, [*ask, "--max-new-tokens=100000000"], "refused", "context is", soon=True)
    yield case(
        "2^31 - 1 new tokens", GENERATE, [*ask, "--max-new-tokens=2147483647"], "refused", "context is", soon=True
    )
    yield case("a 1 x 60,000 image", GENERATE, [*ask, f"--image={narrow}"], "refused", "1 x 60000", soon=True)
    yield case("a pipe as image", GENERATE, [*ask, f"--image={pipe}"], "refused", "is a pipe")
    yield case("a pipe as model", GENERATE, [*ask, f"--model={pipe}"], "refused", "is a pipe")
    with open("/dev/full", "wb") as full:
        yield case("standard output is full", GENERATE, ask, "refused", "No space left", stdout=full.fileno())
    page = f"--picture={scratch / 'x.png'}"
    yield case("a picture and a full disk", GENERATE, [*ask, page], "refused", "x.png", limits=no_file)
    chat = [model, image, "--chat", "--max-new-tokens=2"]
    lines = b"What?\n<image>\n\xff\xfe\nWhere?\n"
    yield case("a chat with lines that are refused", GENERATE, chat, "worked", stdin=lines)
    yield case("few open files", GENERATE, ask, None, limits={resource.RLIMIT_NOFILE: 12})
    for gib in (1, 2, 4):
        yield case(f"{gib} GiB of addresses", GENERATE, ask, None, limits={resource.RLIMIT_AS: gib * 2**30})
    yield evaluating("an evaluation", [], "worked")
    yield evaluating("an evaluation in ASCII", [], "worked", PYTHONIOENCODING="ascii", LC_ALL="C")
    yield evaluating("--out that is not UTF-8", [b"--out=" + os.fsencode(scratch) + b"/out-\xff"], "worked")
    yield evaluating("10,000,000 at a time", ["--batch-size=10000000"], "refused", "at a time fit", soon=True)
    yield evaluating("a full disk", [], "refused", str(scratch / "out"), limits=no_file)
    yield case("no GPU", GENERATE, ask, "refused", "JAX_PLATFORMS=cuda", JAX_PLATFORMS="cuda")
    yield case("no such platform", GENERATE, ask, "refused", "JAX_PLATFORMS=x", JAX_PLATFORMS="x")
    for flags in ("--xla_nothing=1", "nothing"):
        yield case(f"XLA_FLAGS={flags}", GENERATE, ask, "refused", f"XLA_FLAGS={flags}", XLA_FLAGS=flags)
    yield case("flags that XLA has", GENERATE, ask, "worked", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    strict = {"NUMPY_RANK_PROMOTION": "raise", "NUMPY_DTYPE_PROMOTION": "strict", "TRANSFER_GUARD": "disallow"}
    for name, value in strict.items():
        yield case(f"{name}={value}", GENERATE, ask, "worked", **{f"JAX_{name}": value})
    generator, out = random.Random(0), scratch / "twice"
    argv = [model, "--limit=2", "--batch-size=2", "--keep=5", f"--out={out}"]
    for number in range(TWICE):
        moments = generator.uniform(1, 2) * processes.start_s, generator.uniform(0, 1)
        attempt = functools.partial(_twice, processes, argv, out, moments)
        yield Case(f"Ctrl-C twice {number}", attempt, "worked", limit_s=2 * STARTING_S)
    small = {resource.RLIMIT_FSIZE: 3000}
    yield evaluating("a disk that fills up", [], "refused", str(scratch / "out"), limits=small)
