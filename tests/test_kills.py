"""One kill of each command that works alone; `python -m tests.kills --kills=100` tries many moments."""

import random

import pytest

from tests.kills import alone, processes


@pytest.mark.slow
@pytest.mark.parametrize("name", alone.JOBS)
def test_a_killed_command_goes_on(llava_folder, name):
    *early, found = alone.kill_many(name, 1, random.Random(f"{name} 1"), llava_folder)
    assert found["hit"]
    assert all(one["same"] for one in (*early, found)), (early, found)


def test_what_differs_is_seen(llava_folder, monkeypatch):
    """A job whose result is never the same."""
    runs = iter(range(9))
    odd = alone.Job(alone.JOBS["convert"].argv, lambda out: next(runs))
    monkeypatch.setitem(alone.JOBS, "odd", odd)
    found, *_ = alone.kill_many("odd", 1, random.Random(1), llava_folder)
    assert found["status"] == 0
    assert not found["same"]


def test_what_ended_before_its_moment_was_not_killed():
    """It shortens the time that moments are drawn from, and does not count."""
    moments = []

    def once(number, after):
        moments.append(after)
        return {"hit": number > 1, "after": 3.0 if number == 0 else 0.5}

    found = list(processes.until_hit(once, 3, 100.0, random.Random(0)))
    assert [one["hit"] for one in found] == [False, False, True, True, True]
    assert moments[0] > 3 >= moments[1] > 0.5 >= max(moments[2:])
