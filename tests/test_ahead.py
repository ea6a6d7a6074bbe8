"""Batches made ahead in another process: the same ones, in any order, whoever is lost."""

import functools
import os
import signal
import time

import pytest

from experiments.evaluation import ahead
from experiments.evaluation.ahead import Ahead


def doubled(key):
    return 2 * key, os.getpid()


def builder():
    return doubled


@pytest.fixture
def many():
    """One whose process is there."""
    made = Ahead(doubled, builder)
    made.get(0, [1])
    made._ready.result(timeout=60)
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
        made._ready.result(timeout=60)
    assert made.get(1, [2]) == (2, os.getpid())


def test_few_processes():
    assert 1 <= ahead._processes() <= ahead.MOST
