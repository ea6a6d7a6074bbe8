"""A method in a file of the user's own, run through `eval`."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import eval as evaluation
from experiments import rank
from experiments.core import methods
from models.errors import CommandError
from tests.commands import failure
from tokencarve_jax import COMPRESSORS, Compressor, Tokens

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


def test_eval_runs_it_and_takes_no_answers_of_an_earlier_version(file, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["--keep=0.222", "--limit=1", "--no-report", "--methods", f"{file}:ODD", f"--out={out}"]
    assert evaluation.main(argv) == 0
    report = json.loads((out / "results.json").read_text())
    assert all(set(record["predictions"]) == {"vanilla", "odd-ones"} for record in report["samples"])
    file.write_text(METHOD.replace("argsort(-", "argsort("))
    assert "holds a run with other settings (own_methods)" in failure(evaluation.main, argv, capsys)
    assert evaluation.main([*argv, "--restart"]) == 0


def test_rank_takes_no_answers_of_an_earlier_version(file, tmp_path, capsys):
    argv = ["--keep=0.222", "--limit=1", "--methods", f"{file}:ODD", f"--out={tmp_path / 'out'}"]
    assert rank.main(argv) == 0
    file.write_text(METHOD.replace("argsort(-", "argsort("))
    assert "(own_methods)" in failure(rank.main, argv, capsys)


def test_padding_has_no_influence(file):
    rng = np.random.default_rng(0)
    values, looked = rng.normal(size=(30, 8)), rng.uniform(size=30)
    valid = jnp.arange(30) < 20
    compressor = methods.find(f"{file}:ODD")
    first, second = (
        compressor(Tokens.of(jnp.asarray(rows), valid=valid), keep=5, query_attention=jnp.asarray(looked))
        for rows in (values, np.where(np.arange(30)[:, None] < 20, values, 100 * rng.normal(size=(30, 8))))
    )
    np.testing.assert_array_equal(first.indices, second.indices)
