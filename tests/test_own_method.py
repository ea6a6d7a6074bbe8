"""A method in a file of the user's own, run through `eval`."""

import json
import re
from pathlib import Path

import pytest

from experiments import eval as evaluation
from experiments import methods
from experiments.cli import CommandError
from tokencarve_jax import COMPRESSORS, Compressor

README = (Path(__file__).parents[1] / "README.md").read_text()
METHOD = re.search(r"```python file=mine.py\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(METHOD)
    return path


def test_it_is_found_by_file_and_by_module(file, monkeypatch):
    assert methods.find(f"{file}:ODD").name == "odd-ones"
    assert methods.find(f"{file}:odd").evidence == ("query_attention",)
    monkeypatch.syspath_prepend(file.parent)
    assert isinstance(methods.find("mine:ODD"), Compressor)
    assert methods.find("fastv") is COMPRESSORS["fastv"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.py:odd", "no file nowhere.py"),
        ("no_such_module:odd", "No module named"),
        ("{file}:even", "even"),
        ("{file}:jnp", "callable"),
        ("odd", "no method is named 'odd'"),
    ],
)
def test_errors_are_one_line(file, name, says):
    with pytest.raises(CommandError) as error:
        methods.find(name.format(file=file))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_eval_runs_it(file, tmp_path):
    out = tmp_path / "out"
    argv = ["--keep=0.222", "--limit=1", "--methods", f"{file}:ODD", f"--out={out}"]
    assert evaluation.main(argv) == 0
    report = json.loads((out / "results.json").read_text())
    assert all(set(record["said"]) == {"vanilla", "odd-ones"} for record in report["samples"])
