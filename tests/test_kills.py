"""One kill of each command that works alone; `python -m tests.kills --kills=100` tries many moments."""

import random

import pytest

from tests.commands import save_checkpoint
from tests.kills import alone


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.mark.parametrize("name", alone.JOBS)
def test_a_killed_command_goes_on(model, name):
    (found,) = alone.kill_many(name, 1, random.Random(f"{name} 1"), model)
    assert found["same"], found


def test_what_differs_is_seen(model, monkeypatch):
    """A job whose result is never the same."""
    runs = iter(range(9))
    odd = alone.Job(alone.JOBS["convert"].argv, lambda out: next(runs))
    monkeypatch.setitem(alone.JOBS, "odd", odd)
    (found,) = alone.kill_many("odd", 1, random.Random(1), model)
    assert found["status"] == 0
    assert not found["same"]
