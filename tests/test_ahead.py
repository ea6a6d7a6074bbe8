"""Batches made ahead in another process: the same ones, in any order, whoever is lost."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.data import ahead
from experiments.data.ahead import Ahead
from tests.kills.processes import ROOT


def doubled(key):
    return 2 * key, os.getpid()


def builder():
    return doubled


@pytest.fixture
def many():
    """One whose process is there."""
    made = Ahead(doubled, builder)
    made.get(0, [1])
    made._ready.result(timeout=300)
    yield made
    made.close()


def test_nothing_starts_without_need():
    made = Ahead(doubled, builder)
    assert made.get(3) == (6, os.getpid())
    assert made._pool is None


def test_the_next_ones_are_made_there(many):
    assert many.get(1, [2, 3]) == (2, os.getpid())  # nobody had been there for it
    there = [many.get(key, [key + 1]) for key in range(2, 9)]
    assert [value for value, _ in there] == [4, 6, 8, 10, 12, 14, 16]
    assert {pid for _, pid in there}.isdisjoint({os.getpid()})


def test_what_was_not_foreseen_is_made_here(many):
    many.get(1, [2])
    assert many.get(7) == (14, os.getpid())
    assert many.get(2)[0] == 4


def test_a_lost_process(many):
    many.get(1, [2])
    os.kill(many.get(2, [3])[1], signal.SIGKILL)
    time.sleep(0.5)
    assert [many.get(key, [key + 1])[0] for key in range(3, 6)] == [6, 8, 10]


def test_an_error_there_is_the_error_here():
    made = Ahead(doubled, functools.partial(int, "no builder"))
    made.get(0, [1])
    with pytest.raises(Exception, match=r"invalid literal|terminated"):
        made._ready.result(timeout=300)
    assert made.get(1, [2]) == (2, os.getpid())


def test_few_processes():
    assert 1 <= ahead._processes() <= ahead.MAX_PROCESSES


ALIVE = """
import os, time
from experiments.core import processes

if __name__ == "__main__":
    pool = processes.helpers(1)
    processes.start(pool).result()
    print(*pool._processes, flush=True)
    time.sleep(600)
"""


def test_no_process_outlives_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(ALIVE)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, env=environment) as parent:
        helper = int(parent.stdout.readline())
        parent.kill()
    for _ in range(200):
        status = Path(f"/proc/{helper}/status")
        if not status.exists() or "(zombie)" in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail("it is still there")
