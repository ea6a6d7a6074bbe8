"""Measure what carving costs in accuracy and gains in speed and memory.

Asks a LLaVA three questions about each of some held-out scenes (reading, spatial, hallucination): with all visual
tokens (vanilla), carved by TokenCarve, and, as a control, with as many tokens left at random; or by other methods
(--methods), such as TokenCarve with one of its parts off. Prints one table, and writes results.json with every answer,
table.txt and one picture per family of questions.

With --questions it asks the questions of a file in LLaVA's own formats instead, and writes answers for LLaVA's scorers.

A run that was interrupted goes on where it stopped when the same command is given again. Several workers can share the
questions (--workers); the answers are those of one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.core import cli, methods
from experiments.core.results import resuming
from experiments.evaluation import file_run, run_flags
from experiments.evaluation.run import evaluate
from experiments.evaluation.settings import Settings
from models.errors import CommandError

_EXAMPLES = """examples:
  python -m experiments.eval                              the shipped model, 128 of 576 visual tokens left
  python -m experiments.eval --keep=64                    64 left
  python -m experiments.eval --keep=0.111 --limit=30      30 scenes only, for a quick look
  python -m experiments.eval --methods tokencarve tokencarve-no-merge tokencarve-attention-only
                                                          what merging and the information score are worth
  python -m experiments.eval --schedule tome@tower=288 tokencarve@2=128 --schedule fastv@2=128,full
                                                          cuts of your own, each schedule a row of the table
  python -m experiments.eval --model=path/to/llava --dtype=bfloat16 --out=results/mine
  python -m experiments.eval --workers=8                  a machine with eight GPUs
  python -m experiments.eval --model=llava-hf/llava-1.5-7b-hf --dtype=bfloat16 --keep=128 \
      --questions=llava_pope_test.jsonl --images=val2014 --answers=results/pope.jsonl
                                                          POPE, its answers in pope-vanilla.jsonl and so on
"""


def _settings(flags: argparse.Namespace) -> Settings:
    common = run_flags.common(flags)
    files = common["files"]
    out = flags.out or (files.answers.with_suffix("") if files else Path("results") / f"eval-{flags.keep}")
    return Settings(**common, keep=flags.keep, methods=tuple(flags.methods), out=cli.check_folder(out))


def _run(settings: Settings, command: Sequence[str]) -> None:
    if settings.files is None:
        print(evaluate(settings, command=command))
        return
    text, failed = file_run.evaluate(settings, command=command)
    print(text)
    if failed:
        raise CommandError(f"{failed} questions could not be asked; {settings.out / 'results.json'} says why")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, run, and say what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="python -m experiments.eval", description=__doc__, epilog=_EXAMPLES)
    cli.add_keep_flag(parser, default=0.222)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["tokencarve", "random"],
        metavar="NAME",
        help=f"what to compare with all tokens, of: {', '.join(methods.choices())}; or "
        "your own, as package.module:object or path/to/file.py:object; or the authors' cuts at several layers, with "
        f"KEEP as the average over the layers: {', '.join(methods.OFFICIAL)} (default: tokencarve random)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where everything is written (default: results/eval-KEEP, or see --answers)",
    )
    run_flags.add_flags(parser, answers=True)

    def body(flags: argparse.Namespace) -> None:
        with resuming():
            _run(_settings(flags), ["python", "-m", "experiments.eval", *argv])

    return cli.run(body, parser, argv, interrupted="interrupted; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
