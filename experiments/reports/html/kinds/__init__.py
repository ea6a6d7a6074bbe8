"""From results.json to a page: one module for each command that writes one, and a general one for all others."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.reports.html.kinds import bench, compare, evaluation, other, rank, reproduction
from experiments.reports.html.page import Page

_KINDS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any], Path], Page]], ...] = (
    (rank.is_it, rank.page),
    (reproduction.is_it, reproduction.page),
    (compare.is_it, compare.page),
    (bench.is_it, bench.page),
    (evaluation.is_it, evaluation.page),
)


def page_of(report: Mapping[str, Any], folder: Path) -> Page:
    """The page of a results folder, by what its results.json holds."""
    make = next((make for is_it, make in _KINDS if is_it(report)), other.page)
    return make(report, folder)
