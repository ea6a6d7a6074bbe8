"""What all commands share: flags that mean the same everywhere, and errors as one clear line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from models.checkpoint import CheckpointError
from models.config import ConfigError

SHIPPED = Path(os.path.relpath(Path(__file__).parent / "tiny"))
DTYPES = ("float32", "bfloat16", "float16")
_WHOLE = "a whole number of at least"


class CommandError(Exception):
    """Something that the user can put right. The message says what, on one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, without the usage above it."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2 and one line."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


def keep(text: str) -> float | int:
    """Read `--keep`: "0.222" is a fraction, "128" a count.

    >>> keep("0.222"), keep("128")
    (0.222, 128)
    """
    try:
        value: float | int = float(text) if set(text) & set(".eE") else int(text)
    except ValueError:
        value = 0
    if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a fraction of the visual tokens above 0 and up to 1, such as 0.222, "
            "nor a count of at least 1, such as 128"
        )
    return value


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1)


def seed(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not {_WHOLE} {least}")
    return value


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--model` and `--dtype`."""
    parser.add_argument(
        "--model",
        default=str(SHIPPED),
        metavar="FOLDER|ID",
        help="a LLaVA in Hugging Face format: a folder with config.json and safetensors, or a model id on the hub such "
        "as llava-hf/llava-1.5-7b-hf (default: %(default)s, the small trained model of this repository)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="of weights and hidden states (default: %(default)s)"
    )


def add_keep_flag(parser: argparse.ArgumentParser, *, default: float | int | None) -> None:
    """Add `--keep`."""
    unset = "all of them, nothing is carved" if default is None else str(default)
    parser.add_argument(
        "--keep",
        type=keep,
        default=default,
        metavar="FRACTION|COUNT",
        help="how many visual tokens TokenCarve leaves: with a point a fraction (0.222 leaves 128 of 576), without one "
        f"a count (128; so 1 is one token and 1.0 is all) (default: {unset})",
    )


def run(
    body: Callable[[argparse.Namespace], None],
    parser: Parser,
    argv: Sequence[str] | None,
    *,
    interrupted: str = "interrupted",
) -> int:
    """Parse the flags and do the work.

    Args:
      body: the work. `CommandError`, `ConfigError`, `CheckpointError` and `OSError` from it become one line on standard
        error; anything else is a defect and keeps its traceback.
      parser: of the flags.
      argv: the flags; those of the process where None.
      interrupted: what to say after Ctrl-C.

    Returns:
      The exit status.
    """
    flags = parser.parse_args(argv)
    try:
        body(flags)
    except (CommandError, ConfigError, CheckpointError, OSError) as error:
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: {interrupted}", file=sys.stderr)
        return 130
    return 0
