"""Compare every way to shrink visual tokens: at an equal count of tokens, and at an equal amount of compute.

Asks a LLaVA three questions about each of some held-out scenes: with all visual tokens, and with each method at each
budget. At equal count a method leaves so many tokens where it is meant to work; at equal compute, as many as cost no
more floating-point operations than TokenCarve at that budget, the vision tower's own saving included. Writes table.md
and table.csv with all columns, results.json with every answer, and a plot of accuracy against compute.

A run that was interrupted goes on where it stopped when the same command is given again. In a folder that has a run,
another method or budget costs its own work alone.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.comparison.cells import DOWNSAMPLED, KEEPS, AtBudgets, default_methods
from experiments.comparison.run import CompareConfig, compare
from experiments.core import cli, methods, schedules
from experiments.core.journal import resuming
from experiments.data import registry
from experiments.evaluation import flags, pairs
from models.errors import CommandError

_EXAMPLES = """examples:
  python -m experiments.compare                           all methods, 128 and 64 of 576 visual tokens
  python -m experiments.compare --keep 128 --limit=30 --methods fastv visionzip divprune random
  python -m experiments.compare --protocol                what accuracy does not tell, see docs/protocol.md
  python -m experiments.compare --protocol --limit=40     its short form: a few methods, 64 tokens, in minutes
  python -m experiments.compare --methods path/to/mine.py:mine random
                                                          a method of your own beside TokenCarve and chance
  python -m experiments.compare --schedule tome@tower=288 tokencarve@2=128
                                                          a schedule of your own, one more row
  python -m experiments.compare --model=llava-hf/llava-1.5-7b-hf --dtype=bfloat16 --batch-size=8 \
      --questions=llava_pope_test.jsonl --images=val2014   on questions of your own, see --questions
"""


REPEATS = 9
PROTOCOL_SCENES = 100  # unless --limit says otherwise: it asks each question some 160 times
SHORT_SCENES = 40  # with so many or fewer, the protocol takes these and the smaller budget unless told otherwise
SHORT_METHODS, SHORT_REPEATS = ("fastv", "visionzip", "divprune"), 3


def _config(given: argparse.Namespace, command: Sequence[str]) -> CompareConfig:
    if given.protocol and given.limit is None and given.questions == registry.SCENES:
        given.limit = PROTOCOL_SCENES
    short = given.protocol and given.limit is not None and given.limit <= SHORT_SCENES
    names = given.methods or (SHORT_METHODS if short else default_methods(clip=bool(given.clip)))
    keeps, own = given.keep or (KEEPS[-1:] if short else KEEPS), schedules.by_text(given.schedule)
    comparison = AtBudgets.of(names, keeps, own, protocol=given.protocol)
    return CompareConfig(
        run=flags.run(given, given.out, command),
        worker=flags.worker(given, comparison),
        rounds=given.repeats or (SHORT_REPEATS if short else REPEATS),
        gallery=given.gallery,
        report=not given.no_report,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, run, and say what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="python -m experiments.compare", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument(
        "--keep",
        nargs="+",
        type=cli.keep,
        metavar="FRACTION|COUNT",
        help="budgets: with a point a fraction of the visual tokens, without one a count (default: "
        f"{' '.join(map(str, KEEPS))})",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help=f"of: {', '.join([*methods.choices(), *methods.OFFICIAL, DOWNSAMPLED])}; or your own, as "
        "package.module:object or path/to/file.py:object; divprune,kept is a method with an option of its "
        "cut, as in --schedule; nothing else but tokencarve, at whose cost compute is equal (default: all but "
        "TokenCarve's variants, methods for video, and without --clip trim)",
    )
    parser.add_argument(
        "--protocol",
        action="store_true",
        help="judge every method beyond its accuracy: against random tokens and the down-sampled image, on questions "
        "that down-sampling gets wrong, in other layers, on a second question, at other positions; on "
        f"{PROTOCOL_SCENES} scenes unless --limit says otherwise; with {SHORT_SCENES} or fewer the defaults are a few "
        f"methods ({', '.join(SHORT_METHODS)}), {KEEPS[-1]} tokens and {SHORT_REPEATS} repeats",
    )
    parser.add_argument("--repeats", type=cli.positive, help=f"how often all are timed, by turns (default: {REPEATS})")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/compare"),
        metavar="FOLDER",
        help="where everything is written (default: %(default)s)",
    )
    flags.add_flags(parser, answers=False)

    def body(given: argparse.Namespace) -> None:
        config = _config(given, ["python", "-m", "experiments.compare", *argv])
        with resuming():
            text, failed = compare(config)
        print(text)
        if failed:
            raise CommandError(f"{failed} questions could not be asked; {given.out / 'results.json'} says why")

    return cli.run(body, parser, argv, interrupted="interrupted; the same command goes on from here")


if __name__ == "__main__":
    pairs.make_room()
    sys.exit(main())
