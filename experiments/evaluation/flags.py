"""Flags that evaluations share, and what they say."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.core import cli, preprocessing, results, schedules, workers
from experiments.core.config import ModelConfig, PromptConfig, RunConfig
from experiments.data import registry
from experiments.data.encoder import CONVERSATIONS
from experiments.data.questions import QuestionSource
from experiments.evaluation.cells import Comparison
from experiments.evaluation.worker import WorkerConfig
from experiments.reports.gallery import DEFAULT as GALLERY
from models.errors import CommandError


def add_flags(parser: argparse.ArgumentParser, *, answers: bool) -> None:
    """Add the flags of `eval` and `compare`; with `answers`, the command writes answers to a question file."""
    schedules.add_flag(parser, several=True)
    cli.add_model_flags(parser)
    cli.add_clip_flags(parser)
    parser.add_argument(
        "--limit",
        type=cli.positive,
        metavar="COUNT",
        help="how many scenes, each of which is asked three questions, or how many questions of a file (default: "
        "300 scenes, or all questions)",
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
    _add_question_flags(parser, answers=answers)
    workers.add_flags(parser)


def _add_question_flags(parser: argparse.ArgumentParser, *, answers: bool) -> None:
    group = parser.add_argument_group(
        "question files",
        "Questions in LLaVA's own formats in place of the scenes: .jsonl, ScienceQA's .json, MMBench's .tsv. "
        + ("Answers are written as LLaVA writes them, for its scorers. " if answers else "")
        + 'With "answer" in a line of a .jsonl, accuracy is counted.',
    )
    group.add_argument("--questions", default=registry.SCENES, metavar="FILE", help="the questions")
    group.add_argument("--images", type=Path, metavar="FOLDER", help="where the images are that FILE names")
    if answers:
        group.add_argument(
            "--answers",
            type=Path,
            metavar="OUT.jsonl",
            help="where the answers go: OUT-vanilla.jsonl, OUT-tokencarve.jsonl, ...; the run itself is kept in the "
            "folder OUT unless --out names another",
        )
    add_prompt_flags(group, borders=preprocessing.BORDERS if answers else preprocessing.BORDERS[:2])
    group.add_argument(
        "--max-new-tokens",
        type=cli.positive,
        metavar="TOKENS",
        help="the longest answer (default: LLaVA's, 128 for .jsonl and 1024 for the others; MM-Vet and LLaVA-W have "
        "1024 too)",
    )


def add_prompt_flags(parser: Any, *, borders: Sequence[str] = preprocessing.BORDERS) -> None:
    """Add `--image-aspect-ratio`, `--border` and `--conv-mode`: how questions are put, LLaVA-1.5's way without them."""
    preprocessing.add_aspect_ratio_flag(parser, default="pad")
    parser.set_defaults(image_aspect_ratio=None)  # not given; see `prompt`
    parser.add_argument(
        "--border",
        choices=borders,
        help="visual tokens that show nothing but padding: treated as all others, taken last by every cut"
        + (", or dropped before the decoder" if "drop" in borders else "")
        + " (default: keep, as released)",
    )
    parser.add_argument(
        "--conv-mode",
        dest="conversation",
        choices=CONVERSATIONS,
        help="prompt: LLaVA-1.5's, or the checkpoint's chat template (default: vicuna_v1)",
    )


def prompt(flags: argparse.Namespace, base: PromptConfig) -> PromptConfig:
    """How questions are put: what flags say, and `base` where they say nothing."""
    names = (field.name for field in dataclasses.fields(PromptConfig))
    given = {name: getattr(flags, name, None) for name in names}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def worker(flags: argparse.Namespace, comparison: Comparison) -> WorkerConfig:
    """What is asked, and how. Errors as in `questions`."""
    asked = questions(flags)
    return WorkerConfig(
        model=model(flags),
        prompt=prompt(flags, asked.prompt),
        questions=asked,
        comparison=comparison,
        batch_size=flags.batch_size,
        seed=flags.seed,
    )


def model(flags: argparse.Namespace) -> ModelConfig:
    """The checkpoint."""
    more = {name: getattr(flags, name, None) for name in ("clip", "clip_revision")}
    return ModelConfig(source=flags.model, revision=flags.revision, dtype=flags.dtype, **more)


def run(flags: argparse.Namespace, out: Path, command: Sequence[str]) -> RunConfig:
    """Where and by whom the work is done; CommandError where `out` is a file."""
    return RunConfig(
        out=results.check_folder(out),
        command=tuple(command),
        restart=flags.restart,
        workers=getattr(flags, "workers", 1),
        ray_address=getattr(flags, "ray_address", None),
    )


def questions(flags: argparse.Namespace) -> QuestionSource:
    """What is asked; CommandError where flags do not go together, or there are no such questions."""
    if flags.questions == registry.SCENES:
        for name in ("images", "answers"):
            if getattr(flags, name, None) is not None:
                raise CommandError(f"--{name} goes with --questions")
    elif "answers" in flags:
        if flags.answers is None:
            raise CommandError("--questions needs --answers, such as --answers=results/answers.jsonl")
        if not flags.answers.suffix:
            raise CommandError(f"--answers {flags.answers}: pass a file name that ends in .jsonl")
    return registry.source(flags.questions, images=flags.images, limit=flags.limit, seed=flags.seed)
