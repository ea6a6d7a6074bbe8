"""Published schedules of several cuts: places, counts and averages over the layers."""

import doctest
import itertools

import pytest

from models.engine import official, plan
from models.engine.official import layer_average, pyramiddrop_schedule, sparsevlm_schedule


def numbers(cuts, positions="renumbered"):
    assert {(cut.positions, cut.earlier) for cut in cuts} == {(positions, "full")}
    return {cut.place: cut.keep for cut in cuts}


def sparsevlm_plus(*args):
    return sparsevlm_schedule(*args, plus=True)


def in_a_loop(carve, layers, visual):
    """The average, layer by layer."""
    cuts, left, seen = plan.resolve(plan.parse(carve, num_layers=layers), visual), visual, []
    for layer in range(layers):
        for place in ("tower", "input") if layer == 0 else (layer,):
            left = cut.keep if (cut := cuts.at(place)) else left
        seen.append(left)
    return sum(seen) / layers


def test_layer_averages():
    assert layer_average(128, 32, 576) == 156
    assert layer_average(64, 32, 576) == 96
    assert layer_average(None, 32, 576) == 576
    carve = (("tower", "tome", 0.5), ("input", "divprune", 200), (3, "fastv", 0.1), (9, "fastv", 7))
    for schedule in (carve, carve[1:], carve[2:], carve[:1]):
        assert layer_average(schedule, 32, 576) == pytest.approx(in_a_loop(schedule, 32, 576))
    assert doctest.testmod(official).failed == 0


def test_pyramiddrop_as_published():
    assert numbers(pyramiddrop_schedule(32, 576)) == {8: 288, 16: 144, 24: 72}
    assert layer_average(pyramiddrop_schedule(32, 576), 32, 576) == 270
    assert numbers(pyramiddrop_schedule(40, 577)) == {10: 288, 20: 144, 30: 72}
    assert [list(numbers(pyramiddrop_schedule(layers, 576))) for layers in (4, 5, 6)] == [
        [1, 2, 3],
        [1, 2, 4],
        [2, 3, 4],
    ]


# What the authors' whole run leaves, means counted, and the layer average that it has so
PUBLISHED = {
    False: {192: (309, 204, 113), 128: (312, 117, 39), 96: (249, 55, 27), 64: (82, 32, 18)},
    True: {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}


@pytest.mark.parametrize("plus", PUBLISHED)
@pytest.mark.parametrize("budget", [192, 128, 96, 64])
def test_sparsevlm_as_published(budget, plus):
    """Behind layers 2, 6 and 15, and so before the next ones."""
    counts = PUBLISHED[plus][budget]
    cuts = sparsevlm_schedule(32, 576, budget, plus=plus)
    assert numbers(cuts, positions=None if plus else "renumbered") == dict(zip((3, 7, 16), counts, strict=True))
    assert {cut.compressor.name for cut in cuts} == {"sparsevlm-plus" if plus else "sparsevlm"}
    earlier = dict(zip((2, 6, 15), counts, strict=True))  # as the authors count it
    assert layer_average(tuple((place, "random", keep) for place, keep in earlier.items()), 32, 576) == pytest.approx(
        budget, abs=4 if plus else 1
    )
    five = sparsevlm_schedule(32, 2880, budget / 576, plus=plus)  # LLaVA-NeXT's tiles: the same fractions
    assert [cut.keep for cut in five] == [5 * count for count in counts]


@pytest.mark.parametrize(("layers", "visual"), [(32, 576), (40, 577), (28, 1500), (7, 300), (4, 401)])
@pytest.mark.parametrize("make", [pyramiddrop_schedule, sparsevlm_schedule, sparsevlm_plus])
def test_any_budget_is_the_average(make, layers, visual):
    before = layers // 4 + 1 if make is pyramiddrop_schedule else 3
    least = visual * before // layers + 2
    for keep in (least, 0.6, visual - 3, visual, 1.0):
        cuts = make(layers, visual, keep)
        assert len(cuts) == 3
        assert all(a.place < b.place and a.keep >= b.keep >= 1 for a, b in itertools.pairwise(cuts))
        want = keep if isinstance(keep, int) else round(keep * visual)
        assert layer_average(cuts, layers, visual) == pytest.approx(want, abs=1)


def test_places_scale_with_the_depth():
    places = {layers: [cut.place for cut in sparsevlm_schedule(layers, 576, 400)] for layers in (4, 5, 6, 28, 40, 80)}
    assert places == {4: [1, 2, 3], 5: [1, 2, 3], 6: [2, 3, 4], 28: [3, 6, 14], 40: [3, 9, 20], 80: [3, 18, 40]}


def test_what_cannot_be_reached_is_refused():
    with pytest.raises(ValueError, match=r"128 of 576 .* before layers 8, 16, 24 of 32; the least is 144\.8"):
        pyramiddrop_schedule(32, 576, 128)
    assert layer_average(pyramiddrop_schedule(32, 576, 128, places=(4, 8, 16)), 32, 576) == pytest.approx(128, abs=1)
    with pytest.raises(ValueError, match=r"sparsevlm: .* 30 of 576 .*; the least is 54\.9"):
        sparsevlm_schedule(32, 576, 30)
    for make in (pyramiddrop_schedule, sparsevlm_schedule):
        with pytest.raises(ValueError, match="3 layers has no room for 3 cuts; it needs 4 or more"):
            make(3, 576, 200)
        with pytest.raises(ValueError, match=r"must be in 1\.\.576"):
            make(32, 576, 577)
