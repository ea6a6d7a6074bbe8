"""A method in a file of the user's own, run through `eval`."""

import json

import pytest

from experiments import eval as evaluation
from experiments import methods
from experiments.cli import CommandError
from tokencarve_jax import COMPRESSORS, Compressor

METHOD = '''"""Leaves the tokens that differ most from the mean of all."""
import jax.numpy as jnp

from tokencarve_jax import Compressor, Selection


def odd(tokens, *, keep, query_attention):
    centre = tokens.values.mean(-2, keepdims=True)
    distance = jnp.square(tokens.values - centre).sum(-1) * query_attention
    order = jnp.argsort(-jnp.where(tokens.valid, distance, -jnp.inf), axis=-1)
    return Selection(jnp.sort(order[..., :keep], axis=-1).astype(jnp.int32))


ODD = Compressor("odd-ones", odd)
'''


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
