"""What all commands share: the flags' parser, and `run`, which turns errors into one clear line."""

from __future__ import annotations

import argparse
import functools
import io
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax

from models import compile_cache as compiled
from models import interrupts
from models.errors import CheckpointError, CommandError, ConfigError, one_line

_STDOUT = "standard output"
_ADDRESSES = 4 * 2**30  # a small model on two cores takes 2.3 GiB; each core adds threads' stacks
# Flags by the names that they had, and by those that they have in every command. --limit counts what a set holds, and
# meant seconds in `experiments.gpu_session`.
RENAMED = {
    "--batch": "--batch-size",
    "--calls": "--repeats",
    "--limit": "--seconds",
    "--new-tokens": "--max-new-tokens",
    "--rounds": "--repeats",
    "--scenes": "--limit",
    "--steps": "--max-new-tokens",
}
DTYPES = ("float32", "bfloat16", "float16")


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, without the usage above it."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but refuse NUL, earlier names, and `--flag=--`, which argparse reads as an empty list."""
        known = self._option_string_actions
        for given in sys.argv[1:] if args is None else args:
            if "\0" in given:  # a system has none in its command lines, and no path can hold one
                self.error(f"{given!r} holds a NUL character")
            name = given.partition("=")[0]
            if name not in known and (new := RENAMED.get(name)) in known:
                self.error(f"argument {name}: it is called {new} now")
            if given.startswith("--") and given.endswith("=--"):
                self.error(f"argument {given[:-3]}: '--' is not a value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2 and one line."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def _check_addresses() -> None:
    """Raise CommandError if `ulimit -v` leaves too little for XLA and its threads, which would end the process."""
    if sys.platform == "linux":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY and soft < _ADDRESSES:
            raise CommandError(
                f"addresses are limited to {soft / 2**30:.1f} GiB (ulimit -v), and JAX alone takes more than 2; "
                f"allow {_ADDRESSES / 2**30:.0f} GiB or more"
            )


@functools.cache
def _check_xla_flags(flags: str | None) -> None:
    """Raise CommandError if XLA does not know its flags: it would end the process, so that another one has to try."""
    if flags:
        parse = "from jaxlib import xla_client; xla_client.CompileOptions()"
        tried = subprocess.run([sys.executable, "-c", parse], capture_output=True, text=True, errors="replace")
        if tried.returncode and "XLA_FLAGS" in tried.stderr:
            said = tried.stderr.strip().rpartition("\n")[2].rpartition("] ")[2]
            raise CommandError(f"XLA does not take XLA_FLAGS={flags}: {said}")


def _missing_platform() -> str:
    """What is wrong with JAX_PLATFORMS; "" where JAX finds devices."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        named = os.environ.get("JAX_PLATFORMS")
        return f"JAX finds none of the devices that JAX_PLATFORMS={named} asks for; unset it, or install what they need"
    return ""


def _flush() -> None:
    """Flush standard output, or raise OSError with its name: what was printed must arrive, or the command failed."""
    if sys.stdout is None:  # closed from the start
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, _STDOUT) from error


def _nobody_reads(error: Exception) -> bool:
    """Whether the broken pipe is standard output."""
    if not isinstance(error, BrokenPipeError) or sys.stdout is None:
        return False
    state = select.poll()
    state.register(sys.stdout.fileno(), 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in state.poll(0))
    return gone or error.filename == _STDOUT  # poll does not report it for a socket


def _drain() -> None:
    """Flush standard output or drop it, so that Python does not try again at its end and complain."""
    try:
        _flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def run(
    body: Callable[[argparse.Namespace], int | None],
    parser: Parser,
    argv: Sequence[str] | None,
    *,
    interrupted: str = "interrupted",
    keep_compiled: bool = True,
) -> int:
    """Parse the flags and do the work.

    Args:
      body: the work; returns the exit status if it is not 0. `CommandError`, `ConfigError`, `CheckpointError` and
        `OSError` become one line on standard error; any other exception is a defect and keeps its traceback.
      parser: of the flags.
      argv: the flags; None for those of the process.
      interrupted: the message after Ctrl-C.
      keep_compiled: keep compiled programs on disk for the next start. False for a command that times compiling, which
        then does not read any either.

    Returns:
      The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # so that no work is lost to a terminal's encoding
    flags = parser.parse_args(argv)
    # One of these warns that PyTorch is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    last_word = f"\n{parser.prog}: {interrupted}\n"
    if keep_compiled:
        compiled.keep_on_disk()
    else:
        jax.config.update("jax_enable_compilation_cache", False)
    try:
        with interrupts.redeliver(last_word):
            _check_addresses()
            _check_xla_flags(os.environ.get("XLA_FLAGS"))
            status = body(flags) or 0
            _flush()
            return status
    except (CommandError, ConfigError, CheckpointError, OSError) as error:
        unread = _nobody_reads(error)
        _drain()
        if unread:
            return 128 + signal.SIGPIPE  # as a shell's own commands end in front of `head`
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return 1
    except (MemoryError, AssertionError, RuntimeError) as error:  # JAX's own are RuntimeErrors
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            problem = "out of memory; ask for less at a time"
        elif not (problem := _missing_platform()):
            raise
        print(f"{parser.prog}: error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        exec("")  # Python forgets here that it may have hit `exec`, for which it would end by a signal, not our status
        print(last_word, end="", file=sys.stderr)
        return 130
