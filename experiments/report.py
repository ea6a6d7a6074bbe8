"""Turn a results folder into one HTML page that holds all that it needs.

FOLDER is what eval, compare, rank or bench have written to; any other results.json becomes tables. The page has the
table, charts (accuracy against tokens and compute, times, caches, agreement with vanilla), and for eval and compare a
gallery: image, question, all answers, and what became of every patch, by method and number of tokens. It asks nobody
for anything: it can be sent, archived, and opened without a network. eval and compare write it by themselves.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.core import cli
from experiments.reports import html as html_report

_EXAMPLES = """examples:
  python -m experiments.report results/eval-0.222
  python -m experiments.report results/compare
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, write the page, and say what went wrong in one line."""
    parser = cli.Parser(prog="python -m experiments.report", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with a results.json; report.html goes beside it")

    def body(flags: argparse.Namespace) -> None:
        print(html_report.write(flags.folder))

    return cli.run(body, parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
