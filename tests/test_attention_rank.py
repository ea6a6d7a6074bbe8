"""What attention adds, its rank, and what correlates with it: against closed forms, SciPy and a plain recomputation."""

import itertools

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments.attention_rank import report, statement
from experiments.attention_rank.probe import probed
from experiments.metrics import correlation
from experiments.metrics.correlation import correlate, pearson
from experiments.metrics.rank import measure
from models.engine import plan
from models.engine.plan import Cut
from models.engine.target import CPU
from tests.recomputed import Row
from tests.tiny import make_inputs, make_llava
from tokencarve_jax import COMPRESSORS


class TestMeasure:
    @pytest.mark.parametrize("shape", [(9, 5), (5, 9), (200, 4)])
    def test_known_singular_values(self, shape):
        """Shares of a half, a quarter and two eighths: 7 / 4 bits. Not those of the squares, which are 1.0 bits."""
        rng = np.random.default_rng(0)
        left, right = (np.linalg.qr(rng.normal(size=(n, 4)))[0] for n in shape)
        rank, entropy = measure(37 * (left * [4, 2, 1, 1]) @ right.T)
        assert rank == 4
        np.testing.assert_allclose(entropy, 1.75 * np.log(2), rtol=1e-12)

    def test_rank_counts_above_a_hundredth_of_the_largest(self):
        assert measure(np.diag([5, 0.0501, 0.0499, 1e-9]))[0] == 2

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
    def test_padded_stacks_of_any_dtype_against_float64(self, dtype):
        stack = np.random.default_rng(1).normal(size=(2, 3, 7, 5)) * np.logspace(0, -4, 5)
        stack = np.asarray(stack, dtype)
        rank, entropy = measure(np.pad(stack, [(0, 0), (0, 0), (0, 9), (0, 0)]))
        values = np.linalg.svd(stack.astype(np.float64), compute_uv=False)
        np.testing.assert_array_equal(rank, (values > 0.01 * values[..., :1]).sum(-1))
        np.testing.assert_allclose(entropy, scipy.stats.entropy(values, axis=-1), rtol=1e-12)

    def test_zeros_have_no_rank(self):
        chex.assert_trees_all_equal(measure(np.zeros((2, 3, 4))), (np.zeros(2, int), np.zeros(2)))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_is_an_error(self, bad):
        with pytest.raises(ValueError, match="NaN or infinity"):
            measure(np.full((3, 3), bad))


# No cut, one before the decoder, two in it, of which one merges; rows of one and of two images, so that one lacks
# visual tokens.
SCHEDULES = {
    "vanilla": ((2, 1), None),
    "input": ((1, 1), (Cut("input", COMPRESSORS["divprune"], 9),)),
    "twice": ((1, 2), (Cut(1, COMPRESSORS["fastv"], 13, earlier="full"), Cut(3, COMPRESSORS["tokencarve"], 5))),
}


@pytest.fixture(scope="module")
def model():
    return make_llava()


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_attention_adds_is_what_a_plain_recomputation_adds(model, name):
    images, schedule = SCHEDULES[name]
    prompt = model.prompt(*make_inputs(texts=(12, 5), images=images))
    cuts = plan.resolve(plan.parse(schedule, num_layers=5), prompt.visual_slots.shape[1], images=prompt.images)
    _, outputs = probed(model, prompt, np.uint32(0), plan=cuts, decode_capacity=32, target=CPU)
    assert len(outputs) == 4  # of the last of five layers one row is computed
    padded = 0
    for number in range(2):
        row = Row(model, prompt, number, cuts)
        row.prompt()
        for (everything, visual), (added, of_visual) in zip(outputs, row.outputs, strict=False):
            everything = np.asarray(everything[number], np.float64)
            np.testing.assert_allclose(everything[: len(added)], added, atol=2e-4)
            assert not everything[len(added) :].any()
            padded += len(everything) - len(added)
            assert visual[number].shape == of_visual.shape
            np.testing.assert_allclose(np.asarray(visual[number], np.float64), of_visual, atol=2e-4)
    assert padded > 0


@pytest.fixture(scope="module")
def figures():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(13, 2)).round(1)  # with ties
    return x, (0.6 * x + rng.normal(size=(13, 2))).round(1) + np.array([3, -5])


@pytest.mark.parametrize(("kind", "scipys"), [("Pearson", scipy.stats.pearsonr), ("Spearman", scipy.stats.spearmanr)])
class TestCorrelation:
    def test_one_budget_is_the_usual_coefficient(self, figures, kind, scipys):
        x, y = (values[:, :1] for values in figures)
        np.testing.assert_allclose(correlate(x, y, kind)["value"], scipys(x[:, 0], y[:, 0])[0], rtol=1e-12)

    def test_several_budgets_each_without_its_mean(self, figures, kind, scipys):
        own = figures if kind == "Pearson" else [scipy.stats.rankdata(values, axis=0) for values in figures]
        want = scipy.stats.pearsonr(*((values - values.mean(0)).ravel() for values in own))[0]
        np.testing.assert_allclose(correlate(*figures, kind)["value"], want, rtol=1e-12)

    def test_interval_against_scipys_bootstrap(self, figures, kind, scipys):
        x, y = (values[:, 0] for values in figures)
        found = correlate(x[:, None], y[:, None], kind)
        want = scipy.stats.bootstrap(
            (x, y), lambda a, b: scipys(a, b)[0], paired=True, vectorized=False, method="percentile", n_resamples=1500,
            rng=np.random.default_rng(3),
        ).confidence_interval  # fmt: skip
        np.testing.assert_allclose([found["low"], found["high"]], want, atol=0.06)
        assert found["low"] < found["value"] < found["high"]

    @pytest.mark.parametrize("count", [6, 8])
    def test_p_against_every_permutation(self, kind, scipys, count):
        """Exact for few methods, drawn for more."""
        x, y = np.array([1.0, 2, 4, 8, 16, 17, 30, 31])[:count], np.array([2.0, 1, 5, 3, 6, 4, 8, 7])[:count]
        if kind == "Spearman":
            x, y = (scipy.stats.rankdata(values) for values in (x, y))
        orders = np.array(list(itertools.permutations(range(count))))
        exact = (np.abs(_pearson(x, y[orders])) >= abs(_pearson(x, y)) - 1e-12).mean()
        np.testing.assert_allclose(
            correlate(x[:, None], y[:, None], kind)["p"], exact, atol=1e-12 if count == 6 else 0.01
        )

    def test_budgets_that_repeat_each_other_are_no_more_evidence_than_one(self, figures, kind, scipys):
        x, y = (values[:, :1] for values in figures)
        chex.assert_trees_all_close(correlate(np.tile(x, 2), np.tile(y, 2), kind), correlate(x, y, kind))

    def test_where_there_is_none(self, kind, scipys):
        x, constant = np.arange(5.0)[:, None], np.full((5, 1), 0.1)
        for pair in ((x[:3], x[:3]), (x, constant), (constant, x)):
            assert set(correlate(*pair, kind).values()) == {None}
        assert np.isnan(pearson(np.full((3, 5, 1), 0.1), np.tile(x, (3, 1, 1)))).all()


def _pearson(x, y):
    x, y = x - x.mean(), y - y.mean(-1, keepdims=True)
    return (x * y).sum(-1) / np.sqrt((x * x).sum() * (y * y).sum(-1))


def rows(ranks, accuracies, kept=(128, 64)):
    """Rows of methods as `report.row` gives them, vanilla first: three layers, whose mean is the rank."""

    def one(method, place, kept, rank, accuracy):
        right = round(300 * accuracy)
        layers = {name: [0.0, rank - 1, rank + 1] for name in report.MEASURES}
        share = {"right": right, "of": 300, "share": right / 300, "low": right / 300 - 0.02, "high": right / 300 + 0.04}
        behind = {name: float(rank) for name in report.MEASURES}
        return {
            "method": method, "place": place, "visual_tokens": kept, "accuracy": share, "same_answer": share,
            "layers": dict.fromkeys(("all", "visual"), layers), "behind_cut": dict.fromkeys(("all", "visual"), behind),
        }  # fmt: skip

    found = [one("vanilla", "", 576, 20, 0.9)]
    for budget, own, right in zip(kept, ranks, accuracies, strict=True):
        found += [one(f"m{i}", "input", budget, *pair) for i, pair in enumerate(zip(own, right, strict=True))]
    return found


UP, DOWN, NEITHER = np.linspace(0.3, 0.8, 9), np.linspace(0.8, 0.3, 9), np.array([5, 2, 8, 1, 9, 3, 6, 4, 7]) / 10
RANKS = np.arange(9) + 15


class TestVerdict:
    @pytest.fixture(autouse=True)
    def _few_resamples(self, monkeypatch):
        monkeypatch.setattr(correlation, "RESAMPLES", 200)

    @pytest.mark.parametrize(
        ("accuracies", "words"),
        [
            ((UP, UP), "Effective rank predicted accuracy."),
            ((DOWN, DOWN), "Effective rank predicted accuracy the wrong way round."),
            ((NEITHER, NEITHER), "Effective rank did not predict accuracy."),
            ((UP, NEITHER), "Effective rank predicted accuracy at some budgets and not at others."),
            ((UP, DOWN), "Effective rank predicted accuracy at some budgets and not at others."),
        ],
    )
    def test_follows_the_figures(self, accuracies, words):
        found = report.correlations(rows((RANKS, RANKS), accuracies), first=1)
        assert statement.verdict(found).startswith(f"{words}\n")

    def test_few_methods_say_nothing(self):
        few = rows((RANKS[:3], RANKS[:3]), (UP[:3], UP[:3]))
        found = report.correlations(few, first=1)
        assert "cannot be said" in statement.verdict(found)
        assert "n/a" in statement.text(few, found, scenes=100, first=1)

    def test_text_shows_the_rows(self):
        some = rows((RANKS, RANKS), (UP, DOWN))
        text = statement.text(some, report.correlations(some, first=1), scenes=100, first=1)
        assert "300 questions about 100 held-out scenes" in text
        assert "5 of 9 at 128, 5 of 9 at 64" in text  # 15 to 19 of vanilla's 20
        assert "+1.00 [+1.00, +1.00]" in text
        assert "-1.00 [-1.00, -1.00]" in text
        line = next(line for line in text.splitlines() if line.startswith("| m8"))
        assert [cell.strip() for cell in line.split("|")[2:6]] == ["128", "80.0 % ± 3.0", "80.0 %", "23.0"]

    def test_where_methods_cut_can_explain_both(self):
        """Simpson: within each place accuracy rises with rank, across the places it does not."""
        some = rows((RANKS, RANKS), (NEITHER, NEITHER))
        for row in some[1:]:
            inside = row["method"] > "m4"
            row["place"] = "decoder" if inside else "input"
            share = 0.8 - 0.5 * inside + 0.01 * row["behind_cut"]["all"]["rank"]
            row["accuracy"] = row["accuracy"] | {"share": share}
        found = report.correlations(some, first=1)
        assert all(one["value"] < 0.1 for one in statement.decisive(found))
        text = statement.text(some, found, scenes=100, first=1)
        assert "Among the 4 methods that cut in the decoder: +1.00 [" in text
        assert "Among the 5 methods that cut before it: +1.00 [" in text

    def test_layers_before_the_cut_are_no_part_of_it(self):
        found = report.correlations(rows((RANKS, RANKS), (UP, UP)), first=1)
        assert {one["layer"] for one in found} == {None, 1, 2}
        assert {one["place"] for one in found} == {None, "input"}
        assert {one["visual_tokens"] for one in found} == {128, 64, None}
