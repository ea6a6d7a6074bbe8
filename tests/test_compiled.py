"""Compiled programs on disk: a second start finds them, the user's own choice wins, and no cache ever fails a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models import compile_cache as compiled

HERE = Path(__file__).parents[1]
NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "XDG_CACHE_HOME", "PYTHONWARNINGS")
RUN = """
import logging, sys, warnings
import jax, jax.numpy as jnp
import models, tokencarve_jax
from models import cli
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
def body(flags):
    print(jnp.tanh(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))).sum().item())
jax.config.update("jax_platforms", "cpu")
status = cli.run(body, cli.Parser(prog="python -m models.x"), [], keep_compiled=KEEP)
print(len(hits))
sys.exit(status)
"""


def start(home, *, keep=True, before="", **environment):
    """Hits in the cache of one start of a command, and its standard error; its answer is right."""
    env = {name: value for name, value in os.environ.items() if name not in NAMES}
    env |= {"HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **environment}
    code = before + RUN.replace("KEEP", str(keep))
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=HERE, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    answer, hits = run.stdout.split()
    assert 8.8 < float(answer) < 8.9
    return int(hits), run.stderr


def entries(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def test_a_second_start_compiles_nothing(tmp_path):
    assert start(tmp_path) == (0, "")
    kept = entries(tmp_path / ".cache/tokencarve_jax/compiled")
    assert kept
    hits, said = start(tmp_path)
    assert hits == len([path for path in kept if path.name.endswith("-cache")])
    assert said == ""
    assert entries(tmp_path) == kept
    assert kept[0].parent.stat().st_mode & 0o777 == 0o700


def test_the_cache_folder_of_the_user_is_used(tmp_path):
    start(tmp_path / "home", XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert entries(tmp_path / "xdg/tokencarve_jax/compiled")
    assert not entries(tmp_path / "home")
    start(tmp_path / "home", XDG_CACHE_HOME="relative")  # to be ignored, says the specification
    assert entries(tmp_path / "home/.cache/tokencarve_jax")


def test_a_cache_that_the_user_chose_is_taken_instead(tmp_path):
    own = str(tmp_path / "own")
    assert [start(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=own)[0] > 0 for _ in range(2)] == [False, True]
    assert not entries(tmp_path / "home")


def test_without_a_cache(tmp_path):
    assert start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == (0, "")
    assert not entries(tmp_path)


def test_a_command_that_times_compiling_reads_none(tmp_path):
    own = str(tmp_path / "own")
    start(tmp_path, JAX_COMPILATION_CACHE_DIR=own)
    assert entries(own)
    assert start(tmp_path, keep=False, JAX_COMPILATION_CACHE_DIR=own) == (0, "")
    assert start(tmp_path, keep=False) == (0, "")
    assert not entries(tmp_path / ".cache")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 99])
def test_damaged_entries_do_not_fail_a_run(damage, tmp_path):
    start(tmp_path)
    kept = entries(tmp_path)
    for path in kept:
        path.write_bytes(damage(path.read_bytes()))
    assert start(tmp_path) == (0, "")
    assert start(tmp_path) == (len(kept), "")  # it wrote them anew


def test_a_disk_that_gets_full_leaves_no_half_entries(tmp_path):
    before = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (99, resource.RLIM_INFINITY))\n"
    )
    assert start(tmp_path, before=before) == (0, "")
    assert not entries(tmp_path)
    start(tmp_path)
    assert start(tmp_path)[0] > 0


def test_no_place_for_it(tmp_path):
    """A file where the folder should be, as root may write everywhere; a folder that others may write to; no home."""
    (tmp_path / ".cache").write_text("a file")
    assert start(tmp_path) == (0, "")
    open_to_all = tmp_path / "open"
    folder = open_to_all / "tokencarve_jax" / "compiled" / compiled.cache_folder().name
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert start(tmp_path, XDG_CACHE_HOME=str(open_to_all)) == (0, "")
    assert not entries(open_to_all)
    before = "import pathlib\ndef home(): raise RuntimeError('no home')\npathlib.Path.home = home\n"
    assert start(tmp_path, before=before) == (0, "")


def test_a_full_or_read_only_disk(tmp_path):
    before = (
        "import tempfile\ndef full(**_): raise OSError(30, 'Read-only file system')\ntempfile.TemporaryFile = full\n"
    )
    assert start(tmp_path, before=before) == (0, "")
    assert not entries(tmp_path)


def test_several_at_once(tmp_path):
    code = RUN.replace("KEEP", "True")
    env = {name: value for name, value in os.environ.items() if name not in NAMES}
    env |= {"HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=env, cwd=HERE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {run.communicate(timeout=300)[0].split()[0] for run in runs}
    assert len(answers) == 1
    assert all(run.returncode == 0 for run in runs)


def test_the_oldest_go_first(tmp_path):
    for index in range(5):
        path = tmp_path / "kind" / f"{index}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 10)
        os.utime(path, (1000 - index, 1000 - index))
    compiled.shrink(tmp_path, 50)
    assert len(entries(tmp_path)) == 5
    compiled.shrink(tmp_path, 29)
    assert [path.name for path in entries(tmp_path)] == ["0-cache", "1-cache"]
    compiled.shrink(tmp_path / "nowhere", 0)


def test_importing_keeps_nothing():
    code = "import jax, tokencarve_jax, models.llava, experiments.eval; print(jax.config.jax_compilation_cache_dir)"
    env = {name: value for name, value in os.environ.items() if name not in NAMES}
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=HERE, capture_output=True, timeout=300, check=True)
    assert run.stdout.split() == [b"None"]
