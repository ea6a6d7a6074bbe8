"""One LAPACK thread: SciPy's after a carving, NumPy's never, and nobody's where a number was chosen. In processes of
their own, as this one may have set it already."""

import ctypes
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy

from tokencarve_jax import _blas

VARIABLES = ("OPENBLAS_NUM_THREADS", "OPENBLAS_DEFAULT_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
HERE = Path(__file__).parents[1]
CARVE = "tokencarve_jax.carve(tokens, tokens[:, 0], keep=4)"
BEFORE = """
import json, os
import threadpoolctl, jax, jax.numpy as jnp, numpy, tokencarve_jax
tokens = jnp.asarray(numpy.random.default_rng(0).random((12, 5)), jnp.float32)
def threads(folders):
    libraries = [i for i in threadpoolctl.threadpool_info() if i["internal_api"] == "openblas"]
    return next((i["num_threads"] for i in libraries if any(folder in i["filepath"] for folder in folders)), None)
def scipys():
    return threads(["scipy.libs", "scipy/.dylibs"])
def numpys():
    return threads(["numpy.libs", "numpy/.dylibs"])
"""
pytestmark = pytest.mark.skipif(
    not [*Path(scipy.__file__).parents[1].glob("scipy.libs/*openblas*")] or os.cpu_count() == 1,
    reason="SciPy has no OpenBLAS of its own here, or one thread anyway",
)


def found(code, environment=()):
    """What a fresh process has to say, as JSON."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", BEFORE + code],
        env=inherited | {"JAX_PLATFORMS": "cpu"} | dict(environment),
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    "carving",
    [
        f"jax.jit(lambda tokens: {CARVE})(tokens)",
        "tokencarve_jax.information_contribution(tokens, method='svd')",
        "import scipy.linalg; scipy.linalg.eigh(numpy.eye(300)); " + CARVE,
    ],
)
def test_a_carving_leaves_scipys_copy_with_one_thread_and_numpys_as_it_was(carving):
    before, scipys, numpys = found(f"before = numpys()\n{carving}\nprint(json.dumps([before, scipys(), numpys()]))")
    assert before > 1
    assert (scipys, numpys) == (1, before)


def test_neither_an_import_nor_a_score_without_lapack_changes_anything():
    code = "import models.llava, scipy.linalg\ntokencarve_jax.information_contribution(tokens, method='norm')\n"
    assert found(code + "print(json.dumps(scipys() == numpys()))")


def test_a_variable_wins():
    assert found(f"{CARVE}\nprint(json.dumps(scipys()))", {"OMP_NUM_THREADS": "2"}) == 2


def test_a_number_chosen_before_stays_and_so_does_one_chosen_after():
    code = f"import scipy.linalg\nthreadpoolctl.threadpool_limits(3)\n{CARVE}\nprint(json.dumps(scipys()))"
    assert found(code) == 3
    again = CARVE.replace("keep=4", "keep=5")
    code = f"{CARVE}\nthreadpoolctl.threadpool_limits(2)\n{again}\nprint(json.dumps(scipys()))"
    assert found(code) == 2


def test_a_choice_for_a_while_does_not_last():
    code = f"with threadpoolctl.threadpool_limits(3): {CARVE}\n{CARVE.replace('keep=4', 'keep=5')}\n"
    assert found("import scipy.linalg\n" + code + "print(json.dumps(scipys()))") == 1


@pytest.fixture
def nothing_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_blas, "_set", [])
    monkeypatch.setattr(_blas, "open_blas", _blas.open_blas.__wrapped__)  # what another test found is no matter


@pytest.mark.parametrize("files", [[], ["libopenblas.so"], ["libmkl.so"], ["a-openblas.so", "b-openblas.so"]])
def test_another_blas_is_left_alone(files, nothing_set, tmp_path, monkeypatch):
    """No bundled library, a damaged one, that of another vendor, two: no error, and nothing is loaded."""
    (tmp_path / "scipy.libs").mkdir()
    for file in files:
        (tmp_path / "scipy.libs" / file).write_text("no library")
    spec = types.SimpleNamespace(origin=str(tmp_path / "scipy" / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert _blas.open_blas() is None
    _blas.one_thread()


def test_a_library_without_these_functions_is_left_alone(nothing_set, monkeypatch):
    other = np._core._multiarray_umath.__file__
    monkeypatch.setattr(ctypes, "CDLL", lambda path, load=ctypes.CDLL: load(other))
    assert _blas.open_blas() is None


def installed(monkeypatch, prefix="", config=b"OpenBLAS 0.3.30 MAX_THREADS=64", processors=8):
    """The number of threads, in a list, of a library that is found from now on."""
    count = [processors]
    functions = {
        "get_num_threads": lambda: count[0],
        "set_num_threads": lambda value: count.__setitem__(0, value),
        "get_num_procs": lambda: processors,
        "get_config": type("Function", (), {"__call__": lambda self: config})(),
    }
    library = types.SimpleNamespace(**{f"{prefix}openblas_{name}": function for name, function in functions.items()})
    made = _blas._OpenBlas(library)
    monkeypatch.setattr(_blas, "open_blas", lambda: made)
    return count


@pytest.mark.parametrize("prefix", ["scipy_", ""])
@pytest.mark.parametrize(
    ("config", "processors", "default"),
    [(b"OpenBLAS 0.3.30 MAX_THREADS=64", 96, 64), (b"OpenBLAS 0.3.30 MAX_THREADS=64", 8, 8), (b"OpenBLAS", 96, 96)],
)
def test_what_is_installed_has_one_thread_per_core_up_to_the_builds_maximum(
    config, processors, default, prefix, nothing_set, monkeypatch
):
    count = installed(monkeypatch, prefix, config, processors)
    for before, after in ((default - 1, default - 1), (default, 1)):
        count[0] = before
        _blas.one_thread()
        assert count == [after]


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize(("value", "after"), [("2", 8), ("", 1), ("0", 1)])
def test_each_variable_wins_where_it_says_something(name, value, after, nothing_set, monkeypatch):
    count = installed(monkeypatch)
    monkeypatch.setenv(name, value)
    _blas.one_thread()
    assert count == [after]
