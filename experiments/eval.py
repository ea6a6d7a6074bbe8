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

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import dataclasses
import functools
import operator
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core import cli, methods, results, schedules
from experiments.core.config import RunConfig
from experiments.core.journal import resuming
from experiments.core.runner import Runner
from experiments.data.questions import QuestionSet
from experiments.evaluation import files, flags, scenes
from experiments.evaluation.answers import SHAPE, Answers
from experiments.evaluation.cells import AtOneBudget, Cell
from experiments.evaluation.gallery import LookAtScenes
from experiments.evaluation.worker import ModelWorker, WorkerConfig
from experiments.reports import gallery, html
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One evaluation."""

    run: RunConfig  # where and by whom
    worker: WorkerConfig  # what is asked, and how
    keep: float | int
    title: str  # of the questions, as they were asked for
    answers: Path | None  # where answers to a question file go; None for scenes
    gallery: int  # how many questions have their images and patch maps recorded
    report: bool  # whether report.html is written


def _config(given: argparse.Namespace, command: Sequence[str]) -> EvalConfig:
    schedule_rows = schedules.by_text(given.schedule)
    compared = tuple((method, given.keep) for method in methods.named(given.methods, taken=schedule_rows))
    comparison = AtOneBudget(compared, tuple(schedule_rows.items()), square=given.answers is None)
    out = given.answers.with_suffix("") if given.answers else Path("results") / f"eval-{given.keep}"
    return EvalConfig(
        run=flags.run(given, given.out or out, command),
        worker=flags.worker(given, comparison),
        keep=given.keep,
        title=given.questions,
        answers=given.answers,
        gallery=given.gallery,
        report=not given.no_report,
    )


def evaluate(config: EvalConfig) -> tuple[str, int]:
    """Make an evaluation, or go on with one.

    Returns:
      The table, and where everything else is; and how many questions could not be asked.

    Raises:
      CommandError: the run cannot be made; says why.
      OSError: the folder cannot be written to, or another process does so.
    """
    questions, finish = config.worker.questions.load(), _scenes if config.answers is None else _file
    kind = "eval" if config.answers is None else "questions"
    with Runner(config.run, kind, functools.partial(ModelWorker, config.worker)) as runner:
        facts = runner.first(ModelWorker.describe)
        if config.answers is not None:
            files.check_names(facts)
        cells: Mapping[str, Cell] = runner.first(operator.attrgetter("cells"))
        own = methods.own(cut.compressor for cell in cells.values() for cut in cell.cuts)
        settings = runner.settings(keep=config.keep, methods=list(facts), own_methods=own, **config.worker.about())
        journal = runner.journal("answers.jsonl", settings, shape=SHAPE)
        answers = Answers(list(facts), journal, len(questions))
        text, where, failed = finish(config, runner, questions, answers, facts)
        if config.report:
            where += f" To look at in a browser: {html.write(config.run.out)}."
    return f"{text}\n\n{where}", failed


Facts = Mapping[str, Mapping[str, Any]]
_All = tuple[str, str, int]  # the table, where everything else is, and how many could not be asked


def _scenes(config: EvalConfig, runner: Runner, questions: QuestionSet, answers: Answers, facts: Facts) -> _All:
    settings, out = answers.journal.settings, config.run.out
    scenes.ask(runner, questions, answers, batch_size=config.worker.batch_size)
    rows = scenes.rows(answers, questions, facts)
    shown, images = runner.first(LookAtScenes(gallery.choose(questions, config.gallery)))
    gallery.save(shown, images, out)
    pictures = ", ".join(map(str, gallery.draw(shown, images, facts, out)))
    samples = answers.records(questions)
    report = {
        "model": config.worker.model.source,
        "scenes": len({sample["scene"] for sample in samples}),
        "settings": settings,
        "methods": rows,
        "gallery": shown,
        "samples": samples,
    }
    text = scenes.table(rows, title=config.worker.questions.title, settings=settings)
    runner.write(report, {"table.txt": text + "\n"})
    return text, f"All answers and settings: {out / 'results.json'}. Pictures: {pictures}.", 0


def _file(config: EvalConfig, runner: Runner, questions: QuestionSet, answers: Answers, facts: Facts) -> _All:
    cli.note_images(config.worker.model.source, files.sizes(questions))
    spent = files.ask(runner, questions, answers, batch_size=config.worker.batch_size)
    assert config.answers is not None
    name, out = Path(config.worker.model.source).name, config.run.out
    paths = files.write(config.answers, questions, answers, model=name, keep=config.keep)
    rows, (samples, failed) = files.rows(answers, questions, facts), files.records(answers, questions)
    report = {
        "model": config.worker.model.source,
        "questions": config.title,
        "settings": answers.journal.settings,
        "methods": rows,
        "failed": failed,
        "samples": samples,
    }
    square = runner.first(operator.attrgetter("model.square"))
    text = files.table(rows, total=len(questions), failed=len(failed), square=square)
    runner.write(report, {"table.txt": text + "\n"})
    if spent["wall"]:
        results.write_json(out / "seconds.json", spent)  # by itself: all other files are the same in every run
        text += f"\n{files.where_time_went(spent, runner.pool.count)}"
    return text, f"Answers: {', '.join(map(str, paths))}. All settings: {out / 'results.json'}.", len(failed)


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
        help=f"what to compare with all tokens, and nothing else, of: {', '.join(methods.choices())}; or "
        "your own, as package.module:object or path/to/file.py:object; or the authors' cuts at several layers, with "
        f"KEEP as the average over the layers: {', '.join(methods.OFFICIAL)} (default: tokencarve random)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where everything is written (default: results/eval-KEEP, or see --answers)",
    )
    flags.add_flags(parser, answers=True)

    def body(given: argparse.Namespace) -> None:
        config = _config(given, ["python", "-m", "experiments.eval", *argv])
        with resuming():
            text, failed = evaluate(config)
        print(text)
        if failed:
            raise CommandError(f"{failed} questions could not be asked; {config.run.out / 'results.json'} says why")

    return cli.run(body, parser, argv, interrupted="interrupted; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
