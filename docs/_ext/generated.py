"""What pages say that the code knows better: tables of the registry and of the evidence, and each command's `--help`.

A line `<!-- generated: NAME -->` of a page becomes what the function of that name returns.
"""

import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from tokencarve_jax import COMPRESSORS, EVIDENCE, Compressor

ROOT = Path(__file__).parents[2]
_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_PLACES = {"tower": "vision tower", "input": "decoder's input", "decoder": "decoder layer"}


def fill(markdown: str) -> str:
    """A page's source with its marks replaced, and without the empty line that ends a doctest."""
    return _MARK.sub(lambda found: _part(found[1]), markdown).replace("\n\n```\n", "\n```\n")


def _part(name: str) -> str:
    if name not in PARTS:
        raise ExtensionError(f"a page asks for {name!r}; what can be generated is {', '.join(PARTS)}")
    return PARTS[name]()


def registry() -> str:
    """Method, place, evidence, options, paper: one row each."""
    rows = [
        (
            f"`{row.name}`",
            _PLACES[row.at],
            ", ".join(_told(row)) or "nothing",
            ", ".join([*(f"`{name}={value!r}`" for name, value in row.options), *_properties(row)]),
            _paper(row.paper),
        )
        for row in COMPRESSORS.values()
    ]
    return _table(("method", "place", "evidence", "set to", "paper"), rows)


def _told(row: Compressor) -> list[str]:
    return [f"`{name}`" if name in row.required else f"`{name}` (optional)" for name in row.evidence]


def _properties(row: Compressor) -> list[str]:
    merged = ["the rest is merged"] if row.rest == "merged" else []
    return merged + (["sizes count in attention"] if row.calibrated else [])


def _paper(paper: str) -> str:
    number = paper.removeprefix("arXiv ")
    return f"[{paper}](https://arxiv.org/abs/{number})" if number != paper else paper or "a control"


def evidence() -> str:
    """Name, shape, and who asks for it."""
    rows = [
        (
            f"`{name}`",
            f"`[..., {', '.join(letters)}]`" if letters else "",
            ", ".join(f"`{row.name}`" for row in COMPRESSORS.values() if name in row.evidence) or "none yet",
        )
        for name, letters in EVIDENCE.items()
    ]
    return _table(("evidence", "shape", "asked for by"), rows)


def commands() -> str:
    """Every command's own `--help`."""
    return "\n\n".join(f"### `python -m {name}`\n\n```text\n{_help(name)}\n```" for name in command_names())


def command_names() -> list[str]:
    """Modules of `models` and `experiments` that are commands."""
    folders = ("experiments", "experiments/studies", "models")
    files = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    files = [path for path in files if "def main(" in path.read_text() and path.stem != "__main__"]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]


def _help(name: str) -> str:
    said, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "110"  # argparse's width
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            importlib.import_module(name).main(["--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return said.getvalue().strip()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PARTS: dict[str, Callable[[], str]] = {"registry": registry, "evidence": evidence, "commands": commands}


def _on_source(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = fill(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls it."""
    app.connect("source-read", _on_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
