"""The paper's table: its benchmarks through lmms-eval, vanilla and carved, with the published figures beside them.

With --protocol every method is judged on them instead, as `compare --protocol` does on scenes.

Images are padded, prompts are LLaVA-1.5's and decoding is greedy, a question at a time, as in the paper. The carved
columns are the released method to the token (its exact information score); --information has faster routes. Sets whose
answers a judge marks, or whose data need a login, are skipped with a line about it where there is none.

A run that was interrupted goes on where it stopped when the same command is given again. Exit status 1 says that a set
failed or that questions could not be asked.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.comparison.cells import KEEPS, AtBudgets, default_methods
from experiments.core import cli, schedules, workers
from experiments.core.config import PromptConfig
from experiments.core.journal import resuming
from experiments.evaluation import flags
from experiments.evaluation.cells import AtOneBudget, Comparison
from experiments.evaluation.worker import WorkerConfig
from experiments.lmms import harness, reproduction, sets
from experiments.lmms.model_args import INFORMATION
from experiments.lmms.reproduction import ReproduceConfig
from experiments.lmms.requests import Requests
from experiments.lmms.tables import Column
from models.errors import CommandError

_MODEL = "llava-hf/llava-1.5-7b-hf"
_KEEPS, _INFORMATION = (192, 128, 64), ("svd",)
_EXAMPLES = f"""needs lmms-eval: {harness.INSTALL}

examples:
  python -m experiments.reproduce --dtype=bfloat16        the paper's table, 192, 128 and 64 of 576 visual tokens left
  python -m experiments.reproduce --dry-run               what that asks, set by set, without weights
  python -m experiments.reproduce --tasks pope textvqa --keep 128 --information svd subspace
  python -m experiments.reproduce --protocol --dry-run    what judging all methods costs, in GPU hours
  python -m experiments.reproduce --protocol --tasks gqa pope --methods fastv divprune --limit=1000 --dtype=bfloat16
  python -m experiments.reproduce --model=path/to/llava --include=path/to/tasks --tasks my_task --limit=100
"""


def _config(given: argparse.Namespace, command: Sequence[str]) -> ReproduceConfig:
    for name in ("tasks", "keep", "information", "methods"):
        values = getattr(given, name) or ()
        if len(set(values)) < len(values):
            raise CommandError(f"--{name}: something is there twice")
    for name, goes in (("methods", given.protocol), ("information", not given.protocol)):
        if getattr(given, name) and not goes:
            raise CommandError(f"--{name} goes {'without' if given.protocol else 'with'} --protocol")
    if given.protocol and given.border == "drop":
        raise CommandError("--border=drop goes without --protocol, whose budgets are those of whole images")
    columns = tuple[Column, ...]()
    comparison: Comparison
    if given.protocol:
        names = given.methods or default_methods(clip=False)
        comparison = AtBudgets.of(names, given.keep or KEEPS, protocol=True)
    else:
        columns = tuple(
            Column(keep, route) for route in given.information or _INFORMATION for keep in given.keep or _KEEPS
        )
        comparison = AtOneBudget(schedules=tuple(schedules.by_text([[column.name] for column in columns]).items()))
    worker = WorkerConfig(
        model=flags.model(given),
        prompt=flags.prompt(given, PromptConfig()),
        questions=Requests(),
        comparison=comparison,
        batch_size=given.batch_size,
        seed=0,
    )
    return ReproduceConfig(
        run=flags.run(given, given.out, command),
        worker=worker,
        sets=tuple(map(sets.named, given.tasks)),
        include=tuple(given.include),
        columns=columns,
        limit=given.limit,
    )


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m experiments.reproduce", description=__doc__, epilog=_EXAMPLES)
    cli.add_model_flags(parser, default=_MODEL)
    parser.add_argument(
        "--keep",
        nargs="+",
        type=cli.keep,
        metavar="FRACTION|COUNT",
        help="how many visual tokens are left, one column each (default: "
        f"{' '.join(map(str, _KEEPS))}; with --protocol {' '.join(map(str, KEEPS))})",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(sets.SETS),
        metavar="NAME",
        help=f"of {', '.join(sets.SETS)}, or tasks of lmms-eval or of --include by their names "
        "(default: all of the paper)",
    )
    parser.add_argument(
        "--include",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="a folder with tasks of your own, as lmms-eval's YAML files; can be given again",
    )
    parser.add_argument(
        "--information",
        nargs="+",
        choices=INFORMATION,
        help="routes to the information score, columns of their own: svd is exact, as released; subspace is what "
        "everything else here uses; norm does without a decomposition (default: svd)",
    )
    parser.add_argument(
        "--protocol",
        action="store_true",
        help="judge every method: at equal count and compute, beside random tokens and the down-sampled image, on "
        "questions that down-sampling gets wrong, in other layers, at other positions; prints a plan of its GPU hours",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="of --protocol, as in `python -m experiments.compare` (default: those that it takes without --clip)",
    )
    flags.add_prompt_flags(parser)
    parser.add_argument(
        "--batch-size", type=cli.positive, default=1, metavar="QUESTIONS", help="at a time (default: 1, as the paper)"
    )
    parser.add_argument("--limit", type=cli.positive, metavar="COUNT", help="questions of each set (default: all)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and a prompt of each set, without weights"
    )
    cli.add_out_flag(parser, "results/reproduce")
    cli.add_restart_flag(parser)
    workers.add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, run, and say what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv

    def body(given: argparse.Namespace) -> int:
        harness.require()
        config = _config(given, ["python", "-m", "experiments.reproduce", *argv])
        if given.dry_run:
            text, failed = reproduction.dry_run(config)
            problems = [f"{failed} tasks could not be read"] if failed else []
        else:
            cli.note_images(config.worker.model.source, [(0, 0)])  # benchmarks have none of its scenes
            with resuming():
                text, problems = reproduction.reproduce(config)
        print(text)
        for problem in problems:
            print(f"python -m experiments.reproduce: error: {problem}", file=sys.stderr)
        return int(bool(problems))

    return cli.run(body, _parser(), argv, interrupted="interrupted; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
