"""What a benchmark is told to measure, and its flags."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from experiments.core import cli
from experiments.speed import presets, targets
from models.errors import CommandError
from tokencarve_jax.scores.information import DEFAULT, ROUTES


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      preset: names the sizes of the model.
      keep: fraction or count of the visual tokens that are left.
      information: route to TokenCarve's score.
      batch: prompts at a time; several are measured one after the other.
      prompt_tokens: of text.
      new_tokens: to decode.
      dtype: of weights and hidden states.
      against: "transformers", which is measured too, or None.
      repeats: rounds, after one to warm up.
      largest_batch: find out how many rows fit; None: on a GPU.
      generate: time a user's call for one new token too; None: on a CPU.
      out: folder for results.json.
    """

    preset: str
    keep: float | int
    information: str
    batch: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    dtype: str
    against: str | None
    repeats: int
    largest_batch: bool | None
    generate: bool | None
    out: Path


def add_flags(parser: cli.Parser) -> None:
    """All flags of the command."""
    parser.add_argument(
        "--preset", choices=presets.PRESETS, default="small", help="sizes of the model (default: %(default)s)"
    )
    cli.add_keep_flag(parser, default=0.222)
    parser.add_argument(
        "--information", choices=ROUTES, default=DEFAULT, help="route to TokenCarve's score (default: %(default)s)"
    )
    parser.add_argument(
        "--batch",
        type=cli.positive,
        nargs="+",
        default=[1],
        metavar="ROWS",
        help="prompts at a time; several are measured one after the other (default: 1)",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=cli.positive,
        default=76,
        metavar="TOKENS",
        help="of text: 36 before the image, the others after it (default: %(default)s)",
    )
    parser.add_argument(
        "--new-tokens", type=cli.positive, default=64, metavar="TOKENS", help="to decode (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=cli.DTYPES,
        help=f"of weights and hidden states (default: {cli.DTYPES[0]}, with --target bfloat16)",
    )
    parser.add_argument("--against", choices=("transformers",), help="measure that too, in turn with ours")
    parser.add_argument(
        "--repeats", type=cli.positive, default=9, metavar="ROUNDS", help="after one to warm up (default: %(default)s)"
    )
    parser.add_argument(
        "--largest-batch",
        action=argparse.BooleanOptionalAction,
        help="also find how many rows fit in memory (default: on a GPU, and not with --target)",
    )
    parser.add_argument(
        "--generate",
        action=argparse.BooleanOptionalAction,
        help="also time what a user calls, `generate` for one new token; compiles both prefills again, with padding "
        "(default: on a CPU)",
    )
    cli.add_out_flag(parser, "results/bench")
    away = parser.add_argument_group("compiling for an accelerator that is not here")
    away.add_argument("--target", metavar="NAME", help=f"{targets.FORMS}; nothing is run")
    away.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        help="chips along both axes, such as 1x4 for weights split over four (default: one chip)",
    )
    away.add_argument(
        "--layers", type=cli.positive, metavar="COUNT", help="at most so many in decoder and tower, for a quick look"
    )


_AWAY = ("mesh", "layers")


def measured(flags: argparse.Namespace) -> Settings:
    """What is measured here.

    Raises:
      CommandError: a flag that needs `--target`.
    """
    for name in _AWAY:
        if getattr(flags, name) is not None:
            raise CommandError(f"--{name} is for --target alone")
    given = {name: value for name, value in vars(flags).items() if name not in ("target", *_AWAY)}
    return Settings(**given | {"batch": tuple(flags.batch), "dtype": flags.dtype or cli.DTYPES[0]})
