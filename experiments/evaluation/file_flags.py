"""Flags of `python -m experiments.eval` for question files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.core import cli
from experiments.data import preprocessing
from experiments.data.encoder import CONVERSATIONS
from experiments.evaluation.settings import Files
from models.errors import CommandError


def add_flags(parser: argparse.ArgumentParser, *, answers: bool) -> None:
    """Add `--questions` and what goes with it; with `answers`, the command writes these for LLaVA's scorers."""
    group = parser.add_argument_group(
        "question files",
        "Questions in LLaVA's own formats in place of the scenes: .jsonl, ScienceQA's .json, MMBench's .tsv. "
        + ("Answers are written as LLaVA writes them, for its scorers. " if answers else "")
        + 'With "answer" in a line of a .jsonl, accuracy is counted.',
    )
    group.add_argument("--questions", type=Path, metavar="FILE", help="the questions")
    group.add_argument("--images", type=Path, metavar="FOLDER", help="where the images are that FILE names")
    if answers:
        group.add_argument(
            "--answers",
            type=Path,
            metavar="OUT.jsonl",
            help="where the answers go: OUT-vanilla.jsonl, OUT-tokencarve.jsonl, ...; the run itself is kept in the "
            "folder OUT unless --out names another",
        )
    add_asking_flags(group, borders=preprocessing.BORDERS if answers else preprocessing.BORDERS[:2])
    group.add_argument(
        "--max-new-tokens",
        type=cli.positive,
        metavar="TOKENS",
        help="the longest answer (default: LLaVA's, 128 for .jsonl and 1024 for the others; MM-Vet and LLaVA-W have "
        "1024 too)",
    )


def add_asking_flags(parser: argparse._ActionsContainer, *, borders: Sequence[str] = preprocessing.BORDERS) -> None:
    """Add `--image-aspect-ratio`, `--border` and `--conv-mode`: how questions are put, LLaVA-1.5's way without them."""
    preprocessing.add_aspect_ratio_flag(parser, default="pad")
    parser.add_argument(
        "--border",
        choices=borders,
        default="keep",
        help="visual tokens that show nothing but padding: treated as all others, taken last by every cut"
        + (", or dropped before the decoder" if "drop" in borders else "")
        + " (default: %(default)s, as released)",
    )
    parser.add_argument(
        "--conv-mode",
        choices=CONVERSATIONS,
        default="vicuna_v1",
        help="prompt: LLaVA-1.5's, or the checkpoint's chat template (default: %(default)s)",
    )


def files(flags: argparse.Namespace) -> Files | None:
    """What the flags say, or None without `--questions`.

    Raises:
      CommandError: flags that do not go together.
    """
    answers = getattr(flags, "answers", None)
    if flags.questions is None:
        for name, value in (("images", flags.images), ("answers", answers)):
            if value is not None:
                raise CommandError(f"--{name} goes with --questions")
        return None
    if "answers" in flags:
        if answers is None:
            raise CommandError("--questions needs --answers, such as --answers=results/answers.jsonl")
        if not answers.suffix:
            raise CommandError(f"--answers {answers}: pass a file name that ends in .jsonl")
    return Files(
        questions=flags.questions,
        images=flags.images,
        answers=answers,
        image_aspect_ratio=flags.image_aspect_ratio,
        border=flags.border,
        conversation=flags.conv_mode,
        max_new_tokens=flags.max_new_tokens,
        limit=flags.limit,
    )
