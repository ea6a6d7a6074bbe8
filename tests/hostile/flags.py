"""Command lines: every flag with values that it does not take."""

import contextlib
import functools
import io
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments import eval as evaluation
from experiments import generate
from models import check, convert
from models.errors import CommandError
from tests.hostile.case import STARTING_S, Case

VALUES = (
    *("", "0", "-1", "1.5", "nan", "inf", "1e-400", "x", "1_000", "\u0663", "0x10", "True"),
    *("\udcff", "\0", "--", "/dev/null", "9" * 400),
)
NUMBERS = {
    generate.main: ("--keep", "--max-new-tokens", "--dtype"),
    evaluation.main: ("--keep", "--limit", "--batch-size", "--seed", "--dtype", "--workers"),
}


def call(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> None:
    """Run a command in this process; what it refuses in one line is raised."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code
    said = err.getvalue()
    if status in (0, None):
        return
    if said.count("\n") != 1 or "Traceback" in said or out.getvalue():
        raise AssertionError(f"status {status}, {out.getvalue()!r}, {said!r}")
    raise CommandError(said.rstrip("\n"))


def known(model: Path, image: Path, scratch: Path) -> Iterator[Case]:
    """One that works, and one for each of what must be refused."""
    asking = [f"--model={model}", f"--image={image}"]
    good = [*asking, "--prompt=Where?", "--keep=3", "--max-new-tokens=2"]
    yield Case("generate", functools.partial(call, generate.main, good), "worked", limit_s=STARTING_S)
    for name in ("x.h5", "x.grib", "x.bufr", "x.wmf", "x.txt", "x", "/dev/null", str(scratch)):
        argv = [*good, f"--picture={name}"]
        yield Case(f"generate --picture={name}", functools.partial(call, generate.main, argv), "refused", "--picture")
    for name in ("/dev/null", str(image), "/nowhere", "a/b/c", "~/x", "", "\udcff", "x" * 300, "\0"):
        argv = [*good, f"--model={name}"]
        yield Case(f"generate --model={name[:9]!r}", functools.partial(call, generate.main, argv), "refused")
    for main in (convert.main, check.main):
        for argv in (
            [],
            ["/nowhere"],
            ["/dev/null", "/nowhere/x"],
            [str(model), str(model)],
            [str(model), "/dev/null/x"],
        ):
            yield Case(f"{main.__module__} {argv}", functools.partial(call, main, argv), "refused")
    for argv in (["--verify", str(model)], ["--to-hf", str(model), str(scratch / "x")]):
        yield Case(f"convert {argv}", functools.partial(call, convert.main, argv), "refused")


def random_case(image: Path, generator: random.Random, number: int) -> Case:
    """A value that its flag cannot take, or a flag that there is not."""
    main = generator.choice(list(NUMBERS))
    value = generator.choice(VALUES)
    flag = generator.choice((*NUMBERS[main], "--nothing", "-x"))
    value = "x" + value if flag in ("--keep", "--seed") and value in ("1.5", "0", "1_000", "\u0663") else value
    argv = [f"{flag}={value}", *([f"--image={image}", "--prompt=a"] if main is generate.main else [])]
    if value in ("1_000", "\u0663"):  # whole numbers, as Python reads them
        argv[0] = f"--nothing={value}"
    return Case(f"flags {number}: {argv[0][:40]!r}", functools.partial(call, main, argv), "refused")
