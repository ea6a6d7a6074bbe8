"""The README and the pages of the site, as their readers copy from them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: of which page, what its fence says, and what is in it."""

    page: str
    info: str
    text: str


def blocks() -> list[Block]:
    """All fenced blocks of all pages."""
    return [
        Block(str(page.relative_to(ROOT)), found[1].strip(), found[2])
        for page in PAGES
        for found in _FENCE.finditer(page.read_text())
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def spans() -> list[tuple[str, str]]:
    """Page and text of everything in single backticks."""
    return [
        (str(page.relative_to(ROOT)), " ".join(found[1].split()))
        for page in PAGES
        for found in _SPAN.finditer(prose(page))
    ]


def commands() -> list[tuple[str, list[str]]]:
    """Page and words of every command line: in bash blocks, and those of ours in backticks that have arguments."""
    found = []
    for block in blocks():
        if block.info.split()[:1] == ["bash"]:
            lines = block.text.replace("\\\n", " ").splitlines()
            found += [(block.page, words) for line in lines for words in _split(line)]
    for page, text in spans():
        if text.startswith("python -m ") and len(words := shlex.split(text)) > 3:
            found.append((page, words))
    return found


def _split(line: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]
