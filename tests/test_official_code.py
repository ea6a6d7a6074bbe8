"""The engine keeps what the authors' own code kept, as recorded, and the comparison sees a single other token."""

import copy
import json

import numpy as np
import pytest

from models.engine.official import sparsevlm_schedule
from tests.official import __main__ as official
from tests.official.cases import BUDGETS, FIXTURES
from tokencarve_jax import COMPRESSORS


@pytest.fixture(scope="module")
def ours():
    return official.ours()


def test_the_engine_keeps_what_the_authors_code_keeps(ours, monkeypatch, capsys):
    monkeypatch.setattr(official, "ours", lambda: copy.copy(ours))
    assert official.main() == 0, capsys.readouterr().out
    assert len(capsys.readouterr().out.splitlines()) == len(BUDGETS) + 1


@pytest.mark.parametrize("name", ["hiprune", "sparsevlm", "visionzip"])
def test_another_token_or_value_is_told(ours, name):
    fixture = json.loads(FIXTURES.read_text())[name]
    keep, theirs = next(iter(fixture["cases"].items()))
    found = ours[f"{name} {keep}"]
    assert official.compare(name, int(keep), theirs, found)[3] == []
    if "kept" in theirs:
        absent = next(token for token in range(576) if token not in found[0][1])
        theirs["kept"][1][5] = absent
    else:
        theirs["rows"][1][5] += 1e-3
    images, equal, share, (line, *_) = official.compare(name, int(keep), theirs, found)
    assert equal == images - 1
    assert share < 1
    assert f"{name} at {keep}, image 1" in line


def test_schedules_leave_what_the_authors_whole_run_leaves():
    cases = json.loads(FIXTURES.read_text())["sparsevlm"]["cases"]
    for budget in (192, 96, 64):
        counts = [int(cut.keep) for cut in sparsevlm_schedule(32, 576, budget)]
        assert cases[str(counts[0])]["counts"] == [counts] * 4


def test_fixtures_name_their_source():
    fixtures = json.loads(FIXTURES.read_text())
    assert set(fixtures) == set(BUDGETS) <= set(COMPRESSORS)
    for name, fixture in fixtures.items():
        assert len(fixture["commit"]) == 40
        assert fixture["file"].endswith(".py")
        assert {int(keep) for keep in fixture["cases"]} == set(BUDGETS[name])
        for keep, case in fixture["cases"].items():
            for kept in case.get("kept", []):
                assert (np.diff(kept) > 0).all()
                assert len(kept) in (int(keep), int(keep) - 1, int(keep) - 9, int(keep) - 11, int(keep) - 16)
