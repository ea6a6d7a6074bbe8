"""One hostile case: what is tried, what must come of it, and what did."""

import collections
import contextlib
import dataclasses
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from models.errors import CheckpointError, CommandError, ConfigError

LIMIT_S = 20
"""A case that takes longer hangs."""
STARTING_S = 60
"""One that starts a process or compiles a model, on a machine that may be busy."""
REFUSALS = (CommandError, ConfigError, CheckpointError, OSError)
"""What `models.cli.run` makes one line of."""
GOOD = ("worked", "refused")
FAULTS = ("traceback", "hang", "warning", "leftover", "message", "wrong")


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to try.

    Attributes:
      name: says how to make it again, with the seed.
      attempt: does it, in this process; raises one of `REFUSALS` to refuse.
      want: "worked" for inputs that are good, "refused" for those that cannot be right, None where either will do.
      says: what a refusal must name.
      limit_s: when it counts as a hang.
    """

    name: str
    attempt: Callable[[], object]
    want: str | None = None
    says: str = ""
    limit_s: float = LIMIT_S


class Hang(BaseException):
    """Not an Exception, so that no guard takes it for a parser's."""


@dataclasses.dataclass
class Counts:
    """What came of all cases."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    faults: list[str] = dataclasses.field(default_factory=list)

    def add(self, case: Case, outcome: str, detail: str) -> None:
        self.counts[outcome] += 1
        if outcome not in GOOD:
            self.faults.append(f"{outcome}: {case.name}: {detail}")


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _standard_error() -> Iterator[Callable[[], str]]:
    """What is written to file descriptor 2, by C libraries too."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def text() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield text
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def run(case: Case, scratch: Path) -> tuple[str, str]:
    """Try it.

    Args:
      case: what.
      scratch: folder that must hold the same files afterwards.

    Returns:
      One of `GOOD` or `FAULTS`, and details.
    """
    before = set(scratch.rglob("*"))
    with _standard_error() as written, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with _alarm(case.limit_s):
                case.attempt()
            outcome, detail = "worked", ""
        except REFUSALS as error:
            outcome, detail = "refused", str(error)
        except Hang:
            outcome, detail = "hang", f"more than {case.limit_s} s"
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            outcome, detail = "traceback", f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        noise = [*(f"{item.category.__name__}: {item.message}" for item in warned), written()]
    if outcome == "refused":
        if "\n" in detail or case.says not in detail:
            outcome, detail = "message", repr(detail)
        elif case.want == "worked":
            outcome = "wrong"
    elif outcome == "worked" and case.want == "refused":
        outcome, detail = "wrong", "nothing was said"
    if outcome in GOOD and (said := " ".join(filter(None, noise)).strip()):
        outcome, detail = "warning", said[:300]
    if outcome in GOOD and (left := set(scratch.rglob("*")) - before):
        outcome, detail = "leftover", ", ".join(map(str, left))
    return outcome, detail
