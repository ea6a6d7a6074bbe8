"""What all commands share: flags that mean the same everywhere."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.cli import DTYPES, Parser, run
from models.engine.notation import read_keep
from models.errors import CommandError, one_line

__all__ = [
    "CommandError",
    "Parser",
    "add_clip_flags",
    "add_keep_flag",
    "add_model_flags",
    "add_out_flag",
    "add_restart_flag",
    "keep",
    "note_images",
    "one_line",
    "positive",
    "run",
    "seed",
]

_SCENE = (336, 336)  # pixels of a scene that the shipped model has learnt to answer questions about
SHIPPED = Path(os.path.relpath(Path(__file__).parents[1] / "tiny"))
_WHOLE = "a whole number of at least"


def keep(text: str) -> float | int:
    """Read `--keep`: "0.222" is a fraction, "128" a count."""
    try:
        return read_keep(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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


def add_model_flags(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Add `--model`, `--revision` and `--dtype`; the model is the shipped one unless a `default` is given."""
    parser.add_argument(
        "--model",
        default=default or str(SHIPPED),
        metavar="FOLDER|ID",
        help="a LLaVA: a folder in Hugging Face format (config.json and safetensors), a folder that `python -m "
        "models.convert` made, or a model id on the hub such as llava-hf/llava-1.5-7b-hf (default: "
        + (default or "the small trained model of this repository")
        + ")",
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub (default: main)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="of weights and hidden states (default: %(default)s)"
    )


def note_images(model: str, sizes: Iterable[tuple[int, int]]) -> None:
    """Say in a line on standard error that the shipped model knows its scenes alone, where an image cannot be one."""
    shipped = Path(model).exists() and Path(model).resolve() == SHIPPED.resolve()
    if shipped and any(size != _SCENE for size in sizes):
        print(
            "note: the shipped model knows its own scenes alone, such as experiments/gallery/scene.png; what it says "
            "of other images means nothing, and --model names a model that knows such",
            file=sys.stderr,
        )


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--clip` and `--clip-revision`, for `experiments.core.loading.load`."""
    parser.add_argument(
        "--clip",
        metavar="FOLDER|ID",
        help="the CLIP that the model's vision tower is from, such as openai/clip-vit-large-patch14-336: a folder in "
        "Hugging Face format or a model id on the hub; tells methods that can use it (cdpruner, trim) how relevant "
        "each visual token is to the question (default: they are not told)",
    )
    parser.add_argument(
        "--clip-revision",
        metavar="NAME",
        help="its branch, tag or commit on the hub, such as one with safetensors where main has none (default: main)",
    )


def add_out_flag(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add `--out`, for a command that leaves its results.json in a folder."""
    parser.add_argument(
        "--out", type=Path, default=Path(folder), metavar="FOLDER", help="for results.json (default: %(default)s)"
    )


def add_restart_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--restart`, for a command that goes on with what `--out` holds."""
    parser.add_argument("--restart", action="store_true", help="forget what FOLDER holds of an earlier run")


def add_answer_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--max-new-tokens` of a command that prints one answer."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=32,
        metavar="TOKENS",
        help="the longest answer (default: %(default)s)",
    )


def add_keep_flag(parser: Any, *, default: float | int | None) -> None:
    """Add `--keep`."""
    unset = "all of them, nothing is carved" if default is None else str(default)
    parser.add_argument(
        "--keep",
        type=keep,
        default=default,
        metavar="FRACTION|COUNT",
        help="how many visual tokens are left: with a point a fraction (0.222 leaves 128 of 576), without one "
        f"a count (128; so 1 is one token and 1.0 is all) (default: {unset})",
    )
