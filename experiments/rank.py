"""Does the rank of the attention output explain how accurate a method is?

TokenCarve's paper says so: methods that keep the information in the attention output, its rank, keep the accuracy.
Here that is tested. Asks a LLaVA three questions about each of some held-out scenes, carved by many methods at several
budgets, and measures in the same pass what attention adds in every layer: its numerical rank, the entropy of its
singular values and their effective rank. Prints a table, the correlations with accuracy and with the answers of the
model that sees everything, and whether rank predicted accuracy. Writes results.json, table.md, layers.csv and two
figures.

A run that was interrupted goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import sys
from collections.abc import Sequence

from experiments.attention_rank.run import AtBudgets, run
from experiments.core import cli, methods
from experiments.core.journal import resuming
from experiments.data.scene_questions import SceneQuestions
from experiments.evaluation import flags
from experiments.evaluation.worker import WorkerConfig

_BATCH = 6  # questions at a time
_METHODS = (
    *("tokencarve", "tokencarve-no-merge", "tokencarve-attention-only", "tokencarve-information-only"),
    *("fastv", "dart", "sparsevlm", "norm", "random", "uniform", "pooling"),
    *("divprune", "visionzip", "vispruner", "holov", "scope"),
)
_EXAMPLES = """examples:
  python -m experiments.rank                        the shipped model, 128 and 64 of 576 visual tokens left
  python -m experiments.rank --keep 0.333 --limit=100
                                                    one budget, more questions
  python -m experiments.rank --methods tokencarve random norm fastv path/to/file.py:mine
                                                    four known methods and one of your own
"""


def _worker(given: argparse.Namespace) -> WorkerConfig:
    questions = SceneQuestions(given.limit, given.seed)
    return WorkerConfig(
        model=flags.model(given),
        prompt=questions.prompt,
        questions=questions,
        comparison=AtBudgets(methods.named(given.methods), given.keep),
        batch_size=_BATCH,
        seed=given.seed,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, run, and say what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="python -m experiments.rank", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument(
        "--keep",
        nargs="+",
        type=cli.keep,
        default=[128, 64],
        metavar="FRACTION|COUNT",
        help="how many visual tokens are left, one budget or several: with a point a fraction, without one a count "
        "(default: 128 64)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(_METHODS),
        metavar="NAME",
        help=f"what is compared, of: {', '.join(methods.choices())}; or your own, as package.module:object or "
        f"path/to/file.py:object (default: {' '.join(_METHODS)})",
    )
    cli.add_model_flags(parser)
    parser.add_argument(
        "--limit",
        type=cli.positive,
        default=40,
        metavar="COUNT",
        help="how many scenes; each is asked three questions (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=cli.seed, default=0, help="of the scenes and of methods that draw (default: %(default)s)"
    )
    cli.add_out_flag(parser, "results/rank")
    cli.add_restart_flag(parser)

    def body(given: argparse.Namespace) -> None:
        config = flags.run(given, given.out, ["python", "-m", "experiments.rank", *argv])
        with resuming():
            print(run(config, _worker(given)))

    return cli.run(body, parser, argv, interrupted="interrupted; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
