"""From results.json to a page: one module for each kind of run, and a general one for whatever else there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.reports.html.kinds import bench, compare, evaluation, other, rank, reproduction
from experiments.reports.html.page import Page

_PAGES: dict[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "eval": evaluation.page,
    "questions": evaluation.page,
    "compare": compare.page,
    "rank": rank.page,
    "reproduce": reproduction.page,
    "bench": bench.page,
}


def page_of(report: Mapping[str, Any], folder: Path) -> Page:
    """The page of a results folder, by the "kind" that its results.json names."""
    return _PAGES.get(str(report.get("kind")), other.page)(report, folder)
