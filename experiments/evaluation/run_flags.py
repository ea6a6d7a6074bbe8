"""Flags that `eval` and `compare` share, and what they say."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.core import cli, schedules, workers
from experiments.evaluation import file_flags
from experiments.reports.gallery import DEFAULT as GALLERY

SCENES = 300


def add_flags(parser: argparse.ArgumentParser, *, answers: bool) -> None:
    """Add all of them; with `answers`, the command writes answers to a question file."""
    schedules.add_flag(parser, several=True)
    cli.add_model_flags(parser)
    cli.add_clip_flags(parser)
    parser.add_argument(
        "--limit",
        type=cli.positive,
        metavar="COUNT",
        help="how many scenes, each of which is asked three questions, or how many questions of a file (default: "
        f"{SCENES} scenes, or all questions)",
    )
    parser.add_argument(
        "--batch-size", type=cli.positive, default=6, metavar="QUESTIONS", help="at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=cli.seed, default=0, help="of the scenes and of random methods (default: %(default)s)"
    )
    parser.add_argument(
        "--gallery",
        type=cli.positive,
        default=GALLERY,
        metavar="COUNT",
        help="how many questions about scenes the report shows with image and carve maps (default: %(default)s)",
    )
    parser.add_argument("--no-report", action="store_true", help="write no report.html at the end")
    cli.add_restart_flag(parser)
    file_flags.add_flags(parser, answers=answers)
    workers.add_flags(parser)


def common(flags: argparse.Namespace) -> dict[str, Any]:
    """Fields of `experiments.evaluation.settings.Run`, but for `methods` and `out`.

    Raises:
      CommandError: flags that do not go together.
    """
    names = ("model", "dtype", "revision", "clip", "clip_revision", "batch_size", "seed", "restart", "gallery")
    return {name: getattr(flags, name) for name in (*names, "workers", "ray_address")} | {
        "scenes": flags.limit or SCENES,
        "schedules": tuple(map(tuple, flags.schedule)),
        "files": file_flags.files(flags),
        "report": not flags.no_report,
    }
