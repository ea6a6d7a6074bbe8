"""Schedules of cuts as a command line gives them: `tome@tower=288 tokencarve@2=128,calibrated`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.core import cli, methods
from models.engine.plan import INPUT, MERGED, OPTIONS, TOWER, Cut, Schedule, read_options
from models.errors import CommandError

FORM = "METHOD@PLACE=KEEP[,OPTION...]"
_EXAMPLE = "tokencarve@2=128,calibrated"
_WORDS = ", ".join([*OPTIONS, MERGED])


def add_flag(parser: Any, *, several: bool) -> None:
    """Add `--schedule` to a parser or a group of flags; `several` if it can be given again and again."""
    parser.add_argument(
        "--schedule",
        nargs="+",
        metavar="CUT",
        **({"action": "append", "default": []} if several else {}),
        help=f"cuts as {FORM}, in order, such as tome@tower=288 {_EXAMPLE}: METHOD as --methods of experiments.eval "
        "takes it, PLACE tower, input or a decoder layer, KEEP a fraction or a count, OPTION one of "
        f"{_WORDS} (all that is dropped joins what is left)"
        + ("; give the flag again for another schedule" if several else ""),
    )


def read(texts: Sequence[str]) -> Schedule:
    """Cuts from their texts; for a cut of a registered method `str` is the way back.

    Raises:
      CommandError: one line that names the cut, what is wrong with it, and the form that was expected.
    """
    return tuple(_cut(text) for text in texts)


def by_text(schedules: Sequence[Sequence[str]]) -> dict[str, Schedule]:
    """Several schedules by what their cuts read, which is their name in tables. Errors as in `read`."""
    return {" ".join(texts): read(texts) for texts in schedules}


def _cut(text: str) -> Cut:
    method, _, rest = text.rpartition("@")
    place, _, rest = rest.partition("=")
    keep, *words = rest.split(",")
    try:
        if not (method and place and keep):
            raise ValueError("a part is missing")
        options, merged = read_options(words)
        compressor = methods.find(method)
        if merged:
            compressor = dataclasses.replace(compressor, rest=MERGED)
        return Cut(_place(place), compressor, cli.keep(keep), **options)
    except (ValueError, argparse.ArgumentTypeError, CommandError) as error:
        raise CommandError(f"cut {text!r}: {error}; expected {FORM}, such as {_EXAMPLE}") from error


def _place(text: str) -> int | str:
    if text in (TOWER, INPUT):
        return text
    if not text.isdecimal():
        raise ValueError(f"the place {text!r} is neither {TOWER!r}, {INPUT!r} nor the number of a layer")
    return int(text)
