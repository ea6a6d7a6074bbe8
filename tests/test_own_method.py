"""A method in a file of the user's own, run through `eval`."""

import json
import re
import sys
from pathlib import Path

import pytest

from experiments import eval as evaluation
from experiments import rank
from experiments.core import methods
from models.errors import CommandError
from tests.commands import failure
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


def test_eval_runs_it_and_takes_no_answers_of_an_earlier_version(file, llava_folder, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [f"--model={llava_folder}", "--keep=5", "--limit=1", "--gallery=1", "--no-report"]
    argv += ["--methods", f"{file}:ODD", f"--out={out}"]
    assert evaluation.main(argv) == 0
    report = json.loads((out / "results.json").read_text())
    assert all(set(record["predictions"]) == {"vanilla", "odd-ones"} for record in report["samples"])
    file.write_text(METHOD.replace("distance * query", "-distance * query"))
    assert "holds a run with other settings (own_methods)" in failure(evaluation.main, argv, capsys)
    assert evaluation.main([*argv, "--restart"]) == 0


def test_rank_takes_no_answers_of_an_earlier_version(file, tmp_path, capsys):
    argv = ["--keep=0.222", "--limit=1", "--methods", f"{file}:ODD", f"--out={tmp_path / 'out'}"]
    assert rank.main(argv) == 0
    file.write_text(METHOD.replace("distance * query", "-distance * query"))
    assert "(own_methods)" in failure(rank.main, argv, capsys)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def odd(tokens, *, keep): return (1, 2)", "odd: select must return a Selection"),
        ("def odd(tokens, *, keep): raise StopIteration('enough')", "enough"),
        ("def odd(tokens, *, keep): return odd(tokens, keep=keep)", "recursion"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        (
            METHOD.replace("keep, tier)", "2 * keep, tier)"),
            "odd-ones: select must return indices of integers [2, 3, 11]",
        ),
        (METHOD.replace("best(", "jnp.argsort(").replace(", keep, tier)", ")[..., :keep]"), "ascending"),
    ],
)
def test_a_method_that_breaks_the_contract_is_refused_in_one_line(file, text, says):
    file.write_text(f"import jax.numpy as jnp\n{text}\n")
    with pytest.raises(CommandError) as error:
        methods.find(f"{file}:{'ODD' if 'ODD' in text else 'odd'}")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_finds_what_is_beside_it_and_its_own_dataclasses(file):
    file = file.rename(file.parent / "their_method.py")
    (file.parent / "beside_mine.py").write_text("FACTOR = 1")
    head = "from __future__ import annotations\nimport dataclasses\nfrom beside_mine import FACTOR\n"
    file.write_text(f"{head}@dataclasses.dataclass\nclass Of:\n    it: int = FACTOR\n{METHOD}")
    assert methods.find(f"{file}:ODD").name == "odd-ones"
    assert "their_method" not in sys.modules


@pytest.mark.parametrize(
    "made",
    [
        "import functools\nODD = Compressor('odd-ones', functools.partial(odd))",
        "import jax\nODD = Compressor('odd-ones', jax.jit(odd, static_argnames='keep'))",
        "class Odd:\n    def __call__(self, tokens, *, keep, query_attention):\n"
        "        return odd(tokens, keep=keep, query_attention=query_attention)\nODD = Compressor('odd-ones', Odd())",
    ],
    ids=["partial", "jitted", "object"],
)
def test_an_edit_is_seen_however_the_method_is_made(file, made):
    versions = []
    for text in (METHOD, METHOD.replace("distance * query", "-distance * query")):
        file.write_text(f"{text}\n{made}\n")
        versions.append(methods.version(methods.find(f"{file}:ODD")))
    assert versions[0] != versions[1]
    assert all(versions)
