"""Schedules of several cuts as their authors publish them, for decoders of any depth.

Their budget is the average over the layers, see `layer_average`: TokenCarve at 128 of 576 tokens and layer 2 of 32
costs 156.

Axis letters: L layers, N visual tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from models.engine.plan import Carve, Cut, Schedule, parse, resolve, tokens_by_layer
from tokencarve_jax import COMPRESSORS, plan

_N, _L = 576, 32  # of LLaVA-1.5-7B, for which the numbers below are published
_CUTS = 3
_Counts = dict[int, tuple[int, int, int]]
# Tokens after each cut by budget, SparseVLM's means counted; the ends of the family are none and all.
_ENDS: _Counts = {0: (0, 0, 0), _N: (_N, _N, _N)}
_SPARSEVLM = _ENDS | {64: (82, 32, 18), 96: (249, 55, 27), 128: (312, 117, 39), 192: (309, 204, 113)}
_PLUS = _ENDS | {64: (66, 34, 20), 96: (246, 54, 28), 128: (238, 108, 60), 192: (300, 200, 118)}


def layer_average(carve: Carve, num_layers: int, num_visual: int) -> float:
    """Visual tokens of one image that a decoder layer sees, averaged over the layers.

    Args:
      carve: None, a keep, or a schedule, as for `generate`; errors are those of `parse` and `resolve`.
      num_layers: L.
      num_visual: N.

    Examples:
      >>> layer_average(128, 32, 576)
      156.0
    """
    cuts = resolve(parse(carve, num_layers=num_layers), num_visual).cuts
    return sum(tokens_by_layer(cuts, num_layers=num_layers, num_visual=num_visual)) / num_layers


def _average(places: Sequence[int], counts: Sequence[float], num_layers: int, num_visual: int) -> float:
    bounds, seen = [0, *places, num_layers], [num_visual, *counts]
    spans = itertools.pairwise(bounds)
    return sum((end - start) * count for (start, end), count in zip(spans, seen, strict=True)) / num_layers


def pyramiddrop_schedule(
    num_layers: int, num_visual: int, keep: float | int | None = None, *, places: tuple[int, ...] | None = None
) -> Schedule:
    """PyramidDrop (arXiv 2410.17247): after cut i, floor(lambda^i N) tokens, renumbered; earlier caches stay full.

    Args:
      num_layers: L, at least 4.
      num_visual: N.
      keep: the layer average, as a fraction or a count: lambda is solved for, as the authors publish none for 192, 128
        and 64. None: their lambda, 0.5, which leaves 288, 144 and 72 of LLaVA-1.5's 576 tokens, on average 270.
      places: layers of the cuts, ascending. None: after each quarter of the layers, as published (8, 16, 24 of 32).

    Raises:
      ValueError: a number is out of range; or layers before the first cut alone come to more than `keep`: at N = 576
        and L = 32 nothing below 145 can be reached without other places.

    Examples:
      >>> [str(cut) for cut in pyramiddrop_schedule(32, 576)][:2]
      ['pyramiddrop@8=288,renumbered,full', 'pyramiddrop@16=144,renumbered,full']
      >>> round(layer_average(pyramiddrop_schedule(32, 576, 192), 32, 576))
      192
    """
    if places is None:
        places = tuple(round(num_layers * i / (_CUTS + 1)) for i in range(1, _CUTS + 1))
        _check_depth(num_layers)

    def counts(ratio: float) -> list[float]:
        return [max(1.0, ratio**i * num_visual) for i in range(1, len(places) + 1)]

    if keep is None:
        left = [int(count) for count in counts(0.5)]
    else:
        left = [round(count) for count in _solved(counts, keep, places, num_layers, num_visual, "pyramiddrop")]
    return _schedule("pyramiddrop", places, left, positions="renumbered")


def sparsevlm_schedule(num_layers: int, num_visual: int, keep: float | int, *, plus: bool = False) -> Schedule:
    """SparseVLM (arXiv 2410.04417): text rates the tokens at three early depths, and some losers are merged.

    The authors publish counts for 192, 128, 96 and 64 of 576 tokens in 32 layers, cut behind layers 2, 6 and 15 by
    these layers' own attention: before layers 3, 7 and 16 here. They count a budget as if the cuts were one layer
    earlier, so that the layer average is 206.5, 145.4, 114.1 and 82.3. Other budgets are interpolated linearly between
    these (and none, and all) such that the layer average is the budget; other N have the same fractions. Earlier
    caches stay full, and positions are renumbered at each cut.

    Args:
      num_layers: L, at least 4. The places scale with it; the first stays 3 where that leaves two thirds behind it.
      num_visual: N.
      keep: a budget, which is the layer average but for the published ones, as a fraction or a count.
      plus: SparseVLM+, version 2.0 of the code: other counts, nothing merges, positions are kept.

    Raises:
      ValueError: a number is out of range, or layers before the first cut alone come to more than `keep`.

    Examples:
      >>> [str(cut) for cut in sparsevlm_schedule(32, 576, 192)][:2]
      ['sparsevlm@3=309,renumbered,full', 'sparsevlm@7=204,renumbered,full']
      >>> [str(cut) for cut in sparsevlm_schedule(40, 576, 192, plus=True)][:1]
      ['sparsevlm-plus@3=290,full']
    """
    _check_depth(num_layers)
    name, known = ("sparsevlm-plus", _PLUS) if plus else ("sparsevlm", _SPARSEVLM)
    first = min(3, max(1, num_layers // 3))
    second = max(first + 1, round(num_layers * 7 / _L))
    places = (first, second, max(second + 1, round(num_layers * 16 / _L)))

    def counts(share: float) -> list[float]:
        return [max(1.0, count * num_visual / _N) for count in _between(known, share * _N)]

    budget = plan(num_visual, keep).kept
    shares = [count / _N for count in known if num_layers == _L and round(count * num_visual / _N) == budget]
    left = counts(shares[0]) if shares else _solved(counts, keep, places, num_layers, num_visual, name)
    return _schedule(name, places, [round(count) for count in left], positions=None if plus else "renumbered")


def _between(known: _Counts, budget: float) -> list[float]:
    """Counts for a budget of 576, between the known ones."""
    low, high = next(pair for pair in itertools.pairwise(sorted(known)) if budget <= pair[1])
    share = (budget - low) / (high - low)
    return [(1 - share) * a + share * b for a, b in zip(known[low], known[high], strict=True)]


def _solved(
    counts: Callable[[float], list[float]],
    keep: float | int,
    places: Sequence[int],
    num_layers: int,
    num_visual: int,
    name: str,
) -> list[float]:
    """Counts of a family of schedules, by a number from 0 to 1, whose layer average is `keep`."""
    budget = plan(num_visual, keep).kept

    def average(ratio: float) -> float:
        return _average(places, counts(ratio), num_layers, num_visual)

    if (least := average(0)) > budget:
        raise ValueError(
            f"{name}: a layer average of {budget} of {num_visual} visual tokens cannot be reached with cuts before "
            f"layers {', '.join(map(str, places))} of {num_layers}; the least is {least:.1f}"
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if average(middle) > budget else (middle, high)
    return counts(high)


def _check_depth(num_layers: int) -> None:
    if num_layers <= _CUTS:
        raise ValueError(f"a decoder of {num_layers} layers has no room for {_CUTS} cuts; it needs {_CUTS + 1} or more")


def _schedule(name: str, places: Sequence[int], counts: Sequence[int], *, positions: str | None) -> Schedule:
    return tuple(
        Cut(place, COMPRESSORS[name], count, positions=positions, earlier="full")
        for place, count in zip(places, counts, strict=True)
    )
