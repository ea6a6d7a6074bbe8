"""Two programs with decompositions at a time: with the pool that `experiments.compare` asks for they end."""

import os
import subprocess
import sys

import jax
import pytest

from experiments import compare
from experiments.evaluation import pairs
from tests.kills.processes import ROOT

TWO = """
import threading
from experiments.evaluation import pairs
pairs.make_room()
import jax, jax.numpy as jnp
from tokencarve_jax import carve
tokens, attention = jnp.sin(jnp.arange(16 * 576 * 128.0)).reshape(16, 576, 128), jnp.ones((16, 576))
programs = [jax.jit(lambda x, keep=keep: carve(x, attention, keep=keep).tokens.sum()) for keep in (128, 64)]
for program in programs:
    program(tokens).block_until_ready()
assert pairs.at_a_time() == 2
def run(program):
    for step in range(10):
        program(tokens + step).block_until_ready()
threads = [threading.Thread(target=run, args=(program,), daemon=True) for program in programs]
for thread in threads: thread.start()
for thread in threads: thread.join(100)
print([thread.is_alive() for thread in threads])
"""


def test_they_end():
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", TWO], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.stdout == "[False, False]\n", done.stderr


@pytest.mark.parametrize(("size", "count"), [("", 1), ("1", 1), ("3", 1), ("x", 1), ("1000", 2)])
def test_a_small_pool_runs_one(monkeypatch, size, count):
    monkeypatch.setenv("PJRT_NPROC", size)
    assert pairs.at_a_time() == (count if jax.default_backend() == "cpu" else 1)


def test_only_the_command_itself_asks_for_a_pool(monkeypatch):
    """Where JAX runs already, it would change nothing."""
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    assert "PJRT_NPROC" not in os.environ
