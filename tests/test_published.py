"""The order of methods, here and in published tables."""

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from experiments.comparison import published
from experiments.comparison.cells import DOWNSAMPLED
from experiments.core import methods
from experiments.metrics.correlation import correlate


@pytest.mark.parametrize(("kind", "reference"), [("Kendall", kendalltau), ("Spearman", spearmanr)])
@pytest.mark.parametrize("count", [5, 16])
def test_correlation_is_scipys(kind, reference, count):
    rng = np.random.default_rng(count)
    x = rng.integers(0, 6, count).astype(float)  # with ties
    y = (x + rng.normal(size=count)).round(1)
    found = correlate(x[:, None], y[:, None], kind)
    np.testing.assert_allclose(found["value"], reference(x, y).statistic, rtol=1e-12)
    assert -1 <= found["low"] <= found["value"] <= found["high"] <= 1


def test_tables_are_of_methods_that_exist():
    tables = published.published()
    assert len(tables) >= 5
    for table in tables:
        assert set(table.methods) <= {*methods.choices(), DOWNSAMPLED}, table.source
        assert all(
            0 < count < 576 and 0 < figure <= 105 for row in table.methods.values() for count, figure in row.items()
        )


def rows_of(accuracies, basis, budget):
    vanilla = {"method": "vanilla", "basis": None, "budget": None, "why_not": "", "same_answer": 1.0, "accuracy": None}
    return [vanilla] + [
        vanilla | {"method": name, "basis": basis, "budget": budget, "same_answer": share}
        for name, share in accuracies.items()
    ]


def test_agreement_by_hand():
    """MMTok at 64 tokens: fastv < sparsevlm < visionzip < divprune < mmtok; one of ten pairs is swapped here."""
    ours = {"fastv": 0.2, "sparsevlm-schedule": 0.3, "visionzip": 0.5, "divprune": 0.4, "mmtok": 0.6, "random": 0.9}
    found = [row for row in published.agreement(rows_of(ours, "count", 64)) if row["source"].startswith("MMTok")]
    assert [(row["budget"], row["basis"], row["form"]) for row in found] == [
        (64, "count", "as released"),
        (64, "count", "positions kept"),
    ]
    assert set(found[0]["methods"]) == set(ours) - {"random"}
    assert found[0]["Kendall"]["value"] == pytest.approx((9 - 1) / 10)
    assert found[0]["Spearman"]["value"] == pytest.approx(1 - 6 * 2 / (5 * 24))
    # At original positions two more methods change places; those in the decoder have one form.
    kept = ours | {"visionzip,kept": 0.7, "divprune,kept": 0.55, "mmtok,kept": 0.65}
    (row,) = [
        row
        for row in published.agreement(rows_of(kept, "count", 64))
        if row["source"].startswith("MMTok") and row["form"] == "positions kept"
    ]
    assert row["Kendall"]["value"] == pytest.approx((8 - 2) / 10)
    assert "+0.60 [" in published.markdown([row])


def test_three_methods_say_nothing():
    few = {"fastv": 0.2, "visionzip": 0.5, "divprune": 0.4}
    assert published.agreement(rows_of(few, "compute", 64)) == []
