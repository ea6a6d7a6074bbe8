"""Lists the commands: what each does, and how long it usually takes."""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from models import cli

# On two CPU cores with the shipped model or the default sizes, unless it says otherwise.
COMMANDS = {
    "experiments.eval": "minutes",
    "experiments.generate": "seconds",
    "experiments.embed": "seconds",
    "experiments.compare": "hours",
    "experiments.rank": "up to an hour",
    "experiments.report": "seconds",
    "experiments.bench": "minutes",
    "experiments.reproduce": "hours, on an accelerator",
    "experiments.gpu_session": "minutes, on a GPU",
    "experiments.train": "hours",
    "experiments.studies.information_routes": "minutes",
    "experiments.studies.carve_tail": "a minute",
    "experiments.studies.video_prefill": "minutes",
    "models.convert": "seconds to minutes",
    "models.check": "a minute",
}


def purpose(module: str) -> str:
    """What a command's module says that it does, in its first line; nothing is imported."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.splitlines()[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list."""
    parser = cli.Parser(prog="python -m experiments", description=__doc__)
    parser.parse_args(argv)
    for module, time in COMMANDS.items():
        print(f"python -m {module:<40}{time:<26}{purpose(module)}")
    print("\nEach has --help, with examples.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
