"""Schedules of cuts as a command line gives them: `tome@tower=288 tokencarve@2=128,calibrated`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.core import methods
from models.engine import notation
from models.engine.plan import Schedule
from models.errors import CommandError
from tokencarve_jax import Compressor


def add_flag(parser: Any, *, several: bool) -> None:
    """Add `--schedule` to a parser or a group of flags; `several` if it can be given again and again."""
    parser.add_argument(
        "--schedule",
        nargs="+",
        metavar="CUT",
        **({"action": "append", "default": []} if several else {}),
        help=f"cuts as {notation.FORM}, in order, such as tome@tower=288 {notation.EXAMPLE}: METHOD as --methods of "
        "experiments.eval takes it, PLACE tower, input or a decoder layer, KEEP a fraction or a count, OPTION one of "
        f"{notation.WORDS} (all that is dropped joins what is left)"
        + ("; give the flag again for another schedule" if several else ""),
    )


def read(texts: Sequence[str]) -> Schedule:
    """Cuts from their texts; for a cut of a registered method `str` is the way back.

    Raises:
      CommandError: one line that names the cut, what is wrong with it, and the form that was expected.
    """
    try:
        return tuple(notation.read(text, _find) for text in texts)
    except ValueError as error:
        raise CommandError(str(error)) from error


def by_text(schedules: Sequence[Sequence[str]]) -> dict[str, Schedule]:
    """Several schedules by what their cuts read, which is their name in tables. Errors as in `read`."""
    return {" ".join(texts): read(texts) for texts in schedules}


def _find(name: str) -> Compressor:
    try:
        return methods.find(name)
    except CommandError as error:
        raise ValueError(str(error)) from error
