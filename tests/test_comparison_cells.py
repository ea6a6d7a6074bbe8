"""What a comparison's cells are, and the rows and tables that come of what is measured of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparison.cells import COMPUTE, COUNT, GIVEN, AtBudgets, Line, default_methods
from experiments.comparison.rows import rows
from experiments.core import loading, schedules
from experiments.core.journal import Journal
from experiments.core.methods import find, needs_clip
from experiments.data.questions import QuestionSet, Sample
from experiments.evaluation.answers import Answers
from experiments.evaluation.probe import reduced
from experiments.metrics import costs
from experiments.reports import compare_tables
from experiments.speed import presets
from models.errors import CommandError

SEVEN = presets.PRESETS["llava-1.5-7b"]
LENGTH = 652


def grid(config, names, keeps, given=(), length=LENGTH):
    return AtBudgets.of(names, keeps, schedules.by_text(given)).grid(config, length=length)


def cell(found, method, basis, budget=128):
    (line,) = [line for line in found.lines if (line.method, line.basis, line.budget) == (method, basis, budget)]
    return found.cells[line.key]


def flops(cell):
    return costs.prefill_flops(SEVEN, LENGTH, cell.cuts)


@pytest.fixture(scope="module")
def found():
    return grid(SEVEN, ["uniform", "fastv", "tome", "downsampled"], [128, 0.5])


class TestCells:
    def test_tokencarve_averages_as_published(self, found):
        carved = cell(found, "tokencarve", COUNT)
        assert (carved.tokens, carved.average) == (128, 156)
        assert flops(carved) == pytest.approx(3.37e12, rel=0.01)  # XLA's count for a TPU is 3.370 TFLOP

    def test_equal_compute_is_the_most_that_costs_no_more(self, found):
        most, equal = flops(cell(found, "tokencarve", COUNT)), cell(found, "uniform", COMPUTE)
        assert flops(equal) <= most
        more = grid(SEVEN, ["uniform"], [equal.tokens + 1])
        assert flops(cell(more, "uniform", COUNT, equal.tokens + 1)) > most
        assert abs(equal.average - 156) < 2  # attention is quadratic: not exactly the layer average
        assert equal.average == equal.tokens

    def test_what_the_tower_saves_is_spent_in_the_decoder(self, found):
        tome = cell(found, "tome", COMPUTE)
        assert tome.tokens > cell(found, "uniform", COMPUTE).tokens
        assert flops(tome) == costs.tower_flops(SEVEN, tome.cuts) + costs.decoder_flops(SEVEN, LENGTH, tome.cuts)
        assert costs.tower_flops(SEVEN, tome.cuts) < costs.tower_flops(SEVEN)

    def test_same_place_same_cell(self, found):
        for budget in (128, 288):
            assert cell(found, "fastv", COUNT, budget) is cell(found, "fastv", COMPUTE, budget)
        assert next(iter(found.cells)) == "vanilla"

    def test_a_cut_before_the_decoder_has_two_forms(self):
        """As released, which renumbers, and at the positions that the survivors had."""
        found = grid(SEVEN, ["divprune", "divprune,kept"], [128])
        released, kept = (cell(found, name, COUNT).cuts[0] for name in ("divprune", "divprune,kept"))
        assert (released.renumbers, kept.renumbers) == (True, False)
        assert cell(found, "divprune,kept", COMPUTE).tokens == cell(found, "divprune", COMPUTE).tokens
        for wrong, says in (("divprune,keept", "no option 'keept'"), ("divprune,kept,median", "chosen twice")):
            with pytest.raises(CommandError, match=f"method {wrong}: .*{says}"):
                grid(SEVEN, [wrong], [128])

    def test_downsampled_has_about_so_many_patches(self, found):
        low = cell(found, "downsampled", COUNT)
        assert (low.tokens, low.side) == (576, 11)
        assert not any((line.method, line.basis) == ("downsampled", COMPUTE) for line in found.lines)

    def test_what_cannot_be_is_a_line_that_says_why(self):
        shallow = loading.load("experiments/tiny", dtype="float32").llava.config
        found = grid(shallow, ["tome"], [64], length=600)
        (line,) = [line for line in found.lines if line.method == "tome" and line.basis == COUNT]
        assert line.key is None
        assert "72 or more of 576" in line.why_not
        assert cell(found, "tome", COMPUTE, 64).tokens >= 72

    def test_without_a_clip_nothing_is_compared_that_needs_one(self):
        names = default_methods(clip=False)
        assert not any(needs_clip(find(name)) for name in names[:-4])
        assert {*default_methods(clip=True)} - {*names} == {"trim"}

    def test_official_schedules_and_ones_own(self):
        names = ["pyramiddrop-schedule", "sparsevlm-schedule"]
        found = grid(SEVEN, names, [192], given=[["tome@tower=288", "tokencarve@2=64,calibrated"]])
        for name, average in zip(names, (192, 206.5), strict=True):  # SparseVLM's are published counts
            assert cell(found, name, COUNT, 192).average == pytest.approx(average, abs=1)
            assert len(cell(found, name, COUNT, 192).cuts) == 3
        own = found.cells[found.lines[-1].key]
        assert (own.tokens, own.average) == (64, (2 * 288 + 30 * 64) / 32)
        assert own.cuts[1].calibrated
        assert (found.lines[-1].budget, found.lines[-1].basis) == (None, GIVEN)

    @pytest.mark.parametrize(("keep", "says"), [(576, "keeps all 576"), (577, "577"), (1.0, "keeps all")])
    def test_budgets_that_leave_nothing_out(self, keep, says):
        with pytest.raises(CommandError, match=says):
            grid(SEVEN, [], [keep])


def test_reduced_images_have_no_detail_left_and_the_same_colours():
    pixels = np.random.default_rng(0).uniform(size=(1, 3, 56, 56)).astype(np.float32)
    low = np.asarray(reduced(jnp.asarray(pixels), size=14))
    assert low.shape == pixels.shape
    assert low.std() < 0.4 * pixels.std()  # means of 16: a quarter; samples would keep nearly all
    smooth = np.broadcast_to(np.linspace(0, 1, 56, dtype=np.float32), pixels.shape)
    np.testing.assert_allclose(reduced(jnp.asarray(smooth), size=14)[..., 8:-8], smooth[..., 8:-8], atol=0.02)


class Scenes(QuestionSet):
    """Two questions about each of two scenes; the answer is "yes", if anybody knows."""

    max_new_tokens = 1

    def __init__(self, answer):
        self.answer = answer

    def __len__(self):
        return 4

    def sample(self, index):
        return Sample(index, "?", (), self.answer, index // 2, "reading")

    def identity(self):
        return {}


def test_rows_of_made_up_answers(tmp_path):
    """The random model of the other tests is never right."""
    right = {"vanilla": [1, 1, 1, 0], "a": [1, 1, 0, 0], "b": [1, 0, 0, 1]}
    answers = Answers(list(right), Journal(tmp_path / "journal", {}), 4)
    columns = {
        key: {
            "prediction": ["yes" if ok else "no" for ok in marks],
            "kl": [0.0, 0.1, 0.2, 0.3],
            "same_first": [bool(ok) for ok in marks],
        }
        for key, marks in right.items()
    }
    answers.add({"indices": [0, 1, 2, 3, 4], "errors": {}, "found": {"c": {"prediction": ["no"] * 5}}})  # of others
    answers.add({"indices": [0, 1, 2, 3], "errors": {}, "found": columns})
    facts = {key: {"method": key, "tokens": 9, "average": 9.0, "flops": 10} for key in right}
    lines = [
        Line(5, COUNT, "tokencarve", "a"),
        Line(5, COUNT, "b", "b"),
        Line(5, COMPUTE, "b", None, "too dear"),
    ]
    costs = {key: {"xla_flops": None, "cache_bytes": 1} for key in right}
    times = {key: {"prefill_s": [3.0, 1.0, 2.0], "own_s": [0.5]} for key in right}
    found = rows(facts, lines, answers, Scenes("yes"), costs=costs, times=times)
    first, carved, other, none = found
    assert [row["accuracy"]["overall"]["share"] for row in (first, carved, other)] == [0.75, 0.5, 0.5]
    assert other["accuracy"]["reading"]["right"] == 2
    assert (carved["to_vanilla"][0], carved["to_reference"]) == (-0.25, [0.0, 0.0])
    assert (other["to_vanilla"][0], other["to_reference"][0]) == (-0.25, 0.0)
    # Scene by scene b is one behind and one ahead of a: residuals of -1 and +1 over 4 questions, n / (n - 1) = 2.
    assert other["to_reference"][1] == pytest.approx(1.959964 * (2 * 2 / 16) ** 0.5)
    assert other["of_vanilla"] == pytest.approx(2 / 3)
    assert (other["same_answer"], other["same_first_token"]) == (0.25, 0.5)
    assert (other["kl_mean"], other["kl_max"], other["prefill_s"]) == (pytest.approx(0.15), 0.3, 2.0)
    assert none["why_not"] == "too dear"
    unknown = rows(facts, lines, answers, Scenes(None), costs=costs, times=times)
    assert [row.get("accuracy") for row in unknown] == [None] * 4
    assert [row["method"] for row in compare_tables.parts(unknown)[0][1]] == ["vanilla", "a", "b"]  # by agreement
    assert "9: 25.0" in compare_tables.plain(unknown)
    plain = compare_tables.plain(found).splitlines()
    assert [line.split("  ")[0] for line in plain[2:5]] == ["vanilla", "a", "b"]
    assert "9: 50.0 ± 35.0" in plain[4]  # Wilson: 15.0 to 85.0
    text = compare_tables.markdown(found)
    assert "50.0 [" in text
    assert "n/a" in text
    assert text.count("| b ") == 1
