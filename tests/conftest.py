"""What all tests share: one folder of compiled programs, for each worker and each command that tests start."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts this in the background has Ctrl-C ignored, by all that is started from here too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Read by JAX when it is imported: below, in the workers and in child processes. A folder that is set already is kept,
# so after `export JAX_COMPILATION_CACHE_DIR=...` a second run compiles little.
MADE = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="tokencarve-programs-")
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": MADE or os.environ["JAX_COMPILATION_CACHE_DIR"],
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # Compiling programs well takes longer than running them badly; these two make it four times as quick.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip(),
    # JAX writes its entries in place: who reads half of one is warned, and compiles; so is a process short of disk.
    "PYTHONWARNINGS": ",".join(f"ignore:Error {how} persistent compilation cache" for how in ("reading", "writing")),
}

import jax  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

# Compiled with all optimisations: these programs take long to run.
LONG = ("test_subspace", "test_shipped")
MOST_MAPS = 20_000  # of memory; Linux allows a process 65,530, and XLA ends one that needs more
MOST_BYTES = 3 << 30


@pytest.fixture(scope="module", autouse=True)
def _settings_of_jax(request: pytest.FixtureRequest) -> Iterator[None]:
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", not any(name in str(request.path) for name in LONG))
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    if not jax.config.values["jax_enable_compilation_cache"]:  # by a command that times compiling
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    if _holds_too_much():
        jax.clear_caches()


def _holds_too_much() -> bool:
    try:
        maps = Path("/proc/self/maps").read_bytes().count(b"\n")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return True
    return maps > MOST_MAPS or pages * os.sysconf("SC_PAGE_SIZE") > MOST_BYTES


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA on disk, to read only: `tests.commands.save_checkpoint`."""
    from tests.commands import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="session")
def llava_folder_full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the class token among the visual ones (strategy "full")."""
    from tests.commands import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", strategy="full")


def pytest_unconfigure() -> None:
    """The process that made the folder removes it, after its workers have ended."""
    if MADE is not None:
        shutil.rmtree(MADE, ignore_errors=True)
