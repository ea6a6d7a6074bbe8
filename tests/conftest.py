"""What most test files share: they compile dozens of small programs and run each once or twice."""

import os
import signal

import jax
import pytest

# A shell that starts this in the background has Ctrl-C ignored, by all that is started from here too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No program from an earlier run, none left behind: for this process and those that tests start.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
jax.config.update("jax_enable_compilation_cache", False)

# Compiled as users' programs are: what is measured here is arithmetic, or takes long to run.
AS_USERS_DO = (
    "test_carve",
    "test_information",
    "test_subspace",
    "test_parity",
    "test_shipped",
    "test_layers",
    "examples",
)


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles(request: pytest.FixtureRequest) -> None:
    """Everywhere else, compiling programs well takes longer than running them badly."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not any(name in str(request.path) for name in AS_USERS_DO))
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_programs() -> None:
    """A process that holds too many compiled programs runs out of memory maps, and XLA ends it."""
    yield
    jax.clear_caches()
