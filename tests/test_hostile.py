"""300 cases of `python -m tests.hostile`, without those that start processes."""

from tests.hostile.__main__ import GOOD_AT_LEAST, try_all


def test_300_cases():
    found = try_all(300, seed=1, processes=False)
    assert found.faults == []
    assert found.counts.total() == 300
    assert found.counts["worked"] > GOOD_AT_LEAST * 300
