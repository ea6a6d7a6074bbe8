"""Everything that the README and the site's pages show as code is run, or read by the parser that it is meant for."""

import argparse
import importlib
import re
import sys
import tomllib

import pytest

from experiments.lmms import model_args
from models.errors import CommandError
from tests.pages import ROOT, Block, blocks, commands
from tokencarve_jax import COMPRESSORS

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = ("experiments.", "models.", "tests.")
OTHERS = {"pip", "pytest", "ruff", "mypy", "sphinx-build", "cd", "git"}  # what else may be typed
SHOWN = {"text", "bibtex"}  # what is no code


class Read(Exception):
    """The parser has read the line to its end."""


def read(module: str, argv: list[str]) -> None:
    """Have a command's own parser read flags, and do nothing more."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        parse(parser, args, namespace)
        raise Read

    main = importlib.import_module(module).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [module, *argv])
        with pytest.raises(Read):
            main()


def check(words: list[str]) -> None:
    """One command line."""
    if words[:2] == ["python", "-m"] and words[2].startswith(OURS):
        module = f"{words[2]}.__main__" if (ROOT / words[2].replace(".", "/")).is_dir() else words[2]
        read(module, words[3:])
    elif words[0] == "pip":
        extras = {extra for word in words for group in re.findall(r"\[(.*)\]", word) for extra in group.split(",")}
        assert extras <= set(PROJECT["project"]["optional-dependencies"]), words
    elif words[0] == "lmms-eval":
        model_args.read(dict(pair.split("=") for pair in words[words.index("--model_args") + 1].split(",")))
    elif words[0] == "pytest" and "-m" in words:
        assert any(mark.startswith(words[-1] + ":") for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"])
    else:
        assert words[0] in OTHERS, words


def runs(block: Block) -> bool:
    """Whether the block is something that some test runs or reads, or is no code."""
    kind = block.info.split()[0] if block.info else ""
    if kind == "python":
        elsewhere = ("python file=mine.py", "python program=")  # tests/test_own_method.py, tests/test_public_models.py
        return ">>> " in block.text or block.info.startswith(elsewhere)
    return kind == "bash" or kind in SHOWN or kind.startswith("{")


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else None)
def test_every_command_line_is_one_that_its_command_takes(page, words):
    check(words)


def test_every_block_is_run_or_no_code():
    assert [block for block in blocks() if not runs(block)] == []


def test_no_code_hides_in_indented_blocks():
    for page in {block.page for block in blocks()}:
        outside = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"^\n    \S", outside, re.MULTILINE), page


def test_there_are_commands_and_doctests_to_read():
    assert len(commands()) > 40
    assert sum(">>> " in block.text for block in blocks()) > 12


@pytest.mark.parametrize(
    "line",
    [
        "python -m experiments.eval --kep=0.222",
        "python -m experiments.eval --keep=lots",
        "python -m experiments.generate --keep=0.222",
        "python -m models.convert ONE --no-such-flag",
        "pip install -e .[no-such-extra]",
        "pytest -m npu",
        "lmms-eval eval --model_args kep=128",
        "curl somewhere",
    ],
)
def test_these_tests_can_fail(line):
    with pytest.raises((SystemExit, AssertionError, CommandError)):
        check(line.split())


def test_a_block_that_nobody_runs_is_found():
    assert not runs(Block("page.md", "python", "carve()"))
    assert not runs(Block("page.md", "", "carve()"))


def test_the_readme_counts_the_registry_right():
    others = [row for name, row in COMPRESSORS.items() if not name.startswith("tokencarve")]
    published = sum(bool(row.paper) for row in others)
    controls = {3: "three", 4: "four", 5: "five"}[len(others) - published]
    assert f"{published} other published methods and {controls} controls" in " ".join(README.split())
    assert f"{published} other published methods" in (ROOT / "docs" / "index.md").read_text()


def test_the_readmes_figures_are_those_of_the_results_page():
    results = (ROOT / "docs" / "results.md").read_text().split("## Does rank")[0].splitlines()
    full = {line.split()[0]: line for line in results if "±" in line and line.split()}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if "±" in line]
    assert len(rows) > 5
    for method, _, first, second in rows:
        left = re.findall(r"[\d.]+ ± [\d.]+", full[re.split("[, ]", method)[0]])
        assert (first, second) == (left[0], left[2]), method


def test_the_catalogue_names_every_command():
    page = (ROOT / "docs" / "commands.md").read_text()
    for folder in ("experiments", "models"):
        for path in (ROOT / folder).glob("*.py"):
            name = folder if path.stem == "__main__" else f"{folder}.{path.stem}"
            assert ("__main__" not in path.read_text()) or f"`python -m {name}" in page, path
