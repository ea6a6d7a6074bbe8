"""Some cases of `python -m tests.hostile`, without those that start processes."""

import pytest

from tests.hostile.__main__ import GOOD_AT_LEAST, try_all


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_hostile_input_is_done_or_refused_in_one_line(count):
    found = try_all(count, seed=1, processes=False)
    assert found.faults == []
    assert found.counts.total() == count
    assert found.counts["worked"] > GOOD_AT_LEAST * count
