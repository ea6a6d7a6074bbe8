"""An evaluation's figures from its records, against counting by hand."""

import numpy as np
import pytest

from experiments.core import results
from experiments.data.scenes import FAMILIES
from experiments.metrics.summary import rows as summarise


class TestSummary:
    def test_against_counting_by_hand(self):
        rng = np.random.default_rng(0)
        records = [
            {
                "scene": i // 3,
                "family": FAMILIES[(i + i // 3) % 3],
                "answer": "yes",
                "said": {name: str(rng.choice(["yes", "no", ""])) for name in ("vanilla", "tokencarve", "random")},
            }
            for i in range(60)
        ]
        entries = [
            {"batch": 0, "prefill_s": {name: [3.0, 1.0, 2.0] for name in records[0]["said"]}, "samples": records}
        ]
        entries[0]["cache_bytes"] = dict.fromkeys(records[0]["said"], 7)
        tokens = {"vanilla": (9, 9.0), "tokencarve": (4, 5.5), "random": (4, 5.5)}
        rows = summarise(records, tokens=tokens, entries=entries)
        said = {name: np.array([r["said"][name] for r in records]) for name in records[0]["said"]}
        families = np.array([r["family"] for r in records])
        for row in rows:
            right = said[row["method"]] == "yes"
            assert row["accuracy"]["overall"]["share"] == pytest.approx(right.mean())
            assert row["accuracy"]["overall"]["low"] < right.mean() < row["accuracy"]["overall"]["high"]
            for family in FAMILIES:
                assert row["accuracy"][family]["share"] == pytest.approx(right[families == family].mean())
                assert row["accuracy"][family]["of"] == 20
            assert row["of_vanilla"] == pytest.approx(right.mean() / (said["vanilla"] == "yes").mean())
            assert row["same_answer"] == (said[row["method"]] == said["vanilla"]).mean()
            assert row["prefill_s"] == 2.0

    def test_paired_difference_against_resampling_scenes(self):
        rng = np.random.default_rng(1)
        groups = np.repeat(np.arange(80), 3)
        hard = rng.random(80)[groups]
        first, second = rng.random(240) > 0.3 * hard, rng.random(240) > 0.8 * hard
        mean, half = results.paired_difference(first, second, groups)
        assert mean == pytest.approx(second.mean() - first.mean())
        by_scene = (second.astype(float) - first).reshape(80, 3).mean(1)
        drawn = by_scene[rng.integers(0, 80, (4000, 80))].mean(1)
        assert half == pytest.approx(1.96 * drawn.std(), rel=0.05)

    def test_one_scene_has_no_interval(self):
        assert np.isnan(results.paired_difference([True, True], [True, False], [0, 0])[1])
