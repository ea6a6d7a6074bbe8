"""Compiled programs on disk: a second start finds them, the user's own choice wins, and no cache ever fails a run."""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from models import cli
from models import compile_cache as compiled

HERE = Path(__file__).parents[1]
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def _as_at_a_start(tmp_path, monkeypatch):
    """A home of its own, no cache yet; and afterwards as before."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def start(*, keep=True, chosen=None, enabled=True):
    """Hits in the cache of one start of a command, of which nothing is said; its answer is right."""
    for name, value in zip(SETTINGS, (chosen, enabled, 0), strict=True):
        jax.config.update(name, value)
    jax.clear_caches()
    compilation_cache.reset_cache()
    hits, answers = [], []

    def listen(name, **_):
        if name.endswith("cache_hits"):
            hits.append(name)

    def body(flags):
        answers.append(jnp.tanh(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))).sum().item())

    jax.monitoring.register_event_listener(listen)
    try:
        with warnings.catch_warnings(record=True) as said:
            assert cli.run(body, cli.Parser(prog="python -m models.x"), [], keep_compiled=keep) == 0
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert 8.8 < answers[0] < 8.9
    assert said == []
    return len(hits)


def entries(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def test_a_second_start_compiles_nothing(tmp_path):
    assert start() == 0
    kept = entries(tmp_path / ".cache/tokencarve_jax/compiled")
    assert kept
    assert start() == len([path for path in kept if path.name.endswith("-cache")])
    assert entries(tmp_path) == kept
    assert kept[0].parent.stat().st_mode & 0o777 == 0o700


def test_the_cache_folder_of_the_user_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    start()
    assert entries(tmp_path / "xdg/tokencarve_jax/compiled")
    assert not entries(tmp_path / ".cache")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    start()
    assert entries(tmp_path / ".cache/tokencarve_jax")


def test_a_cache_that_the_user_chose_is_taken_instead(tmp_path):
    own = str(tmp_path / "own")
    assert [start(chosen=own) > 0 for _ in range(2)] == [False, True]
    assert entries(own)
    assert start(chosen=own, keep=False) == 0  # a command that times compiling reads none
    assert not entries(tmp_path / ".cache")


def test_without_a_cache(tmp_path):
    assert start(enabled=False) == start(keep=False) == 0
    assert not entries(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 99])
def test_damaged_entries_do_not_fail_a_run(damage, tmp_path):
    start()
    kept = entries(tmp_path)
    for path in kept:
        path.write_bytes(damage(path.read_bytes()))
    assert start() == 0
    assert start() == len(kept)  # it wrote them anew


def test_a_disk_that_gets_full_leaves_no_half_entries(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (99, before[1]))
    try:
        assert start() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not entries(tmp_path)
    start()
    assert start() > 0


def test_no_place_for_it(tmp_path, monkeypatch):
    """A file where the folder should be, as root may write everywhere; a folder that others may write to; no home."""
    (tmp_path / ".cache").write_text("a file")
    assert start() == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "open"))
    compiled.cache_folder().mkdir(parents=True)
    compiled.cache_folder().chmod(0o777)
    assert start() == 0
    assert not entries(tmp_path / "open")
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home():
        raise RuntimeError("no home")

    monkeypatch.setattr(pathlib.Path, "home", home)
    assert start() == 0


def test_a_read_only_disk(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert start() == 0
    assert not entries(tmp_path)


IMPORT = "import jax, tokencarve_jax, models.llava, experiments.eval; before = jax.config.jax_compilation_cache_dir"
RUN = f"""
{IMPORT}
from models import cli
def body(flags):
    print(before, jax.jit(lambda x: x * 2 + 1)(3))
jax.config.update("jax_platforms", "cpu")
cli.run(body, cli.Parser(prog="python -m models.x"), [])
"""


def test_importing_keeps_nothing_and_several_may_start_at_once(tmp_path):
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true", "HOME": str(tmp_path)}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    argv = [sys.executable, "-c", RUN]
    runs = [subprocess.Popen(argv, env=env, cwd=HERE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate(timeout=300)[0].split() for run in runs] == [["None", "7"]] * 2
    assert entries(tmp_path / ".cache/tokencarve_jax")


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
