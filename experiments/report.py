"""Turn a results folder into one HTML page that holds all that it needs.

FOLDER is what eval, compare, rank or bench have written to; any other results.json becomes tables. The page has the
table, charts (accuracy against tokens and compute, times, caches, agreement with vanilla), and for eval and compare a
gallery: image, question, all answers, and what became of every patch, by method and number of tokens. It asks nobody
for anything: it can be sent, archived, and opened without a network. eval and compare write it by themselves.

With --board the rows of several folders of compare, anyone's, stand on one page: asked the same in the same way, by the
same code; what differs is refused.
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
  python -m experiments.report --board results/mine results/yours      one page, board.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, write the page, and say what went wrong in one line."""
    parser = cli.Parser(prog="python -m experiments.report", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="with a results.json; report.html goes beside it"
    )
    parser.add_argument("--board", action="store_true", help="put folders of compare on one page")
    parser.add_argument(
        "--out", type=Path, default=Path("board.html"), metavar="FILE", help="of --board (default: %(default)s)"
    )

    def body(flags: argparse.Namespace) -> None:
        if flags.board:
            html_report.write_board(flags.folders, flags.out)
            print(flags.out)
        else:
            for folder in flags.folders:
                print(html_report.write(folder))

    return cli.run(body, parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
