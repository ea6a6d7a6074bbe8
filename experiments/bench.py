"""Measure speed and memory of prefill, decoding, carving and cache; against the machine and against transformers.

The model has random weights, made on the device: speed does not depend on what they are. Ours and transformers take
turns, call by call, so that whatever else the machine does hits both; transformers lives in a process of its own, with
fused attention (sdpa), the same shapes, the same dtype, and the GPU where PyTorch has one. Prints one table per batch
size and writes results.json with every single time.

On a CPU, or with `--generate`, what a user calls is timed too: `Llava.generate` for one new token, from the arrays of a
processor to the token on the host, with the padding of its length bucket, beside transformers' `generate`.

The cache is counted twice: the slots of the prompt (no padding here), and all that is allocated, with the room for
new tokens, which is rounded up to a multiple of 32.

With `--target` nothing is run or measured: the programs are compiled for an accelerator that need not be there, and
what the compiler says about them is printed beside bounds from the accelerator's published rates.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import sys
from collections.abc import Sequence

from experiments.core import cli
from experiments.core.memory import check_context
from experiments.speed import presets, targets
from tokencarve_jax.scores.information import DEFAULT, ROUTES

_EXAMPLES = """examples:
  python -m experiments.bench --against=transformers      the small preset, on a CPU: 5 minutes
  python -m experiments.bench --preset=llava-1.5-7b --dtype=bfloat16 --batch-size 1 8 --against=transformers
                                                          on a GPU of 80 GB
  python -m experiments.bench --preset=llava-1.5-7b --dtype=bfloat16 --max-new-tokens=1024 --repeats=3
                                                          how many rows fit, with and without carving
  python -m experiments.bench --target=h100 --preset=llava-1.5-7b
                                                          compiled for an H100 that need not be there
  python -m experiments.bench --target=v5e:2x2 --mesh=1x4 --preset=llava-1.5-13b
"""


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m experiments.bench", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument(
        "--preset", choices=presets.PRESETS, default="small", help="sizes of the model (default: %(default)s)"
    )
    cli.add_keep_flag(parser, default=0.222)
    parser.add_argument(
        "--information", choices=ROUTES, default=DEFAULT, help="route to TokenCarve's score (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
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
        "--max-new-tokens", type=cli.positive, default=64, metavar="TOKENS", help="to decode (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=cli.DTYPES,
        help=f"of weights and hidden states (default: {cli.DTYPES[0]}, with --target bfloat16)",
    )
    parser.add_argument("--against", choices=("transformers",), help="measure that too, in turn with ours")
    parser.add_argument(
        "--repeats",
        type=cli.positive,
        default=9,
        metavar="COUNT",
        help="times, after one to warm up (default: %(default)s)",
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
    target = parser.add_argument_group("compiling for an accelerator that is not here")
    target.add_argument("--target", metavar="NAME", help=f"{targets.FORMS}; nothing is run")
    target.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        help="chips along both axes, such as 1x4 for weights split over four (default: one chip)",
    )
    target.add_argument(
        "--layers", type=cli.positive, metavar="COUNT", help="at most so many in decoder and tower, for a quick look"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, measure or compile, and print what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    command = " ".join(["python -m experiments.bench", *argv])

    def body(flags: argparse.Namespace) -> None:
        from experiments.speed import compiled, measure

        config = presets.PRESETS[flags.preset]
        check_context(config, config.tokens_per_image + flags.prompt_tokens, flags.max_new_tokens)
        flags.dtype = flags.dtype or ("bfloat16" if flags.target else cli.DTYPES[0])
        (compiled if flags.target else measure).bench(flags, command=command)

    return cli.run(body, _parser(), argv, keep_compiled=False)


if __name__ == "__main__":
    sys.exit(main())
