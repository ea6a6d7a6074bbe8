"""What lmms-eval's `--model_args` say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from experiments.core import cli, methods, preprocessing, schedules
from experiments.core.config import PromptConfig
from experiments.core.methods import BASELINE
from experiments.data.encoder import CONVERSATIONS
from experiments.evaluation import flags
from experiments.evaluation.cells import AtOneBudget
from experiments.evaluation.worker import WorkerConfig
from experiments.lmms.requests import Requests
from models.cli import DTYPES
from models.errors import CommandError
from tokencarve_jax.scores.information import DEFAULT

INFORMATION = {DEFAULT: "tokencarve", "svd": "tokencarve-svd", "norm": "tokencarve-norm"}
"""Routes to TokenCarve's information score, as rows of the registry."""
_IGNORED = ("device", "max_batch_size")  # what the harness passes to every model


@dataclasses.dataclass(frozen=True)
class ModelArgs:
    """The model of one run of the harness."""

    worker: WorkerConfig  # the model, and how it is asked
    cell: str  # the name of what answers; "vanilla" where nothing is carved
    journal: Path  # folder that journals go to
    restart: bool  # forget what it holds


class _Parser(cli.Parser):
    """Reads `name=value` pairs as flags."""

    def error(self, message: str) -> NoReturn:
        """Raise what a flag's error is here."""
        raise CommandError(f"model_args: {message}")


def _parser() -> _Parser:
    parser = _Parser(add_help=False)
    parser.add_argument("--pretrained", dest="model", default=str(cli.SHIPPED))
    parser.add_argument("--revision")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--keep", type=cli.keep)
    parser.add_argument("--method")
    parser.add_argument("--information", choices=INFORMATION)
    parser.add_argument("--schedule", type=str.split)
    parser.add_argument("--image_aspect_ratio", choices=preprocessing.ASPECT_RATIOS)
    parser.add_argument("--border", choices=preprocessing.BORDERS)
    parser.add_argument("--conversation", choices=CONVERSATIONS)
    parser.add_argument("--max_new_tokens", type=cli.positive)
    parser.add_argument("--batch_size", type=cli.positive, default=1)
    parser.add_argument("--seed", type=cli.seed, default=0)
    parser.add_argument("--journal", type=Path, default=Path("results") / "lmms-eval")
    parser.add_argument("--restart", type=str.lower, choices=("true", "1", "false", "0"), default="false")
    return parser


def read(given: Mapping[str, Any]) -> ModelArgs:
    """Read what stands in `--model_args`, as the harness has split it, and in `--batch_size`.

    Args:
      given: `pretrained` (a folder or an id on the hub), `revision`, `dtype`, `batch_size`, `seed`; `keep` with
        `method` (and `information` for TokenCarve), or `schedule`, cuts as `experiments.core.schedules` reads them with
        spaces between them (in quotes where they have commas); without any of these nothing is carved;
        `image_aspect_ratio`, `border`, `conversation`, `max_new_tokens` (where a task has none);
        `journal`, a folder for answers (default: results/lmms-eval), and `restart`.

    Raises:
      CommandError: an unknown argument, or a value that does not fit it.
    """
    pairs = {name: str(value).strip("\"'") for name, value in given.items() if name not in _IGNORED}
    args = _parser().parse_args([f"--{name}={value}" for name, value in pairs.items()])
    method, information = args.method, args.information
    if args.schedule and (args.keep or method or information):
        raise CommandError("model_args: schedule says all; leave out keep, method and information")
    if (method or information) and not args.keep:
        raise CommandError("model_args: a method needs keep, such as keep=128")
    if information and method not in (None, "tokencarve"):
        raise CommandError(f"model_args: information is for tokencarve, not for {method}")
    if not method or information:
        method = INFORMATION[information or DEFAULT]
    compared = methods.named([method] if args.keep else [])
    own = schedules.by_text([args.schedule] if args.schedule else [])
    worker = WorkerConfig(
        model=flags.model(args),
        prompt=flags.prompt(args, PromptConfig()),
        questions=Requests(),
        comparison=AtOneBudget(tuple((one, args.keep) for one in compared), tuple(own.items())),
        batch_size=args.batch_size,
        seed=args.seed,
    )
    cell, *_ = [*(one.name for one in compared), *own, BASELINE]
    return ModelArgs(worker, cell, args.journal, args.restart in ("true", "1"))
