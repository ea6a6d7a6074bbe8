"""The gallery of a run: which questions it shows, their images on the disk, and pictures for papers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.data.questions import QuestionSet
from experiments.metrics.summary import BASELINE
from experiments.reports import pictures
from experiments.reports.patch_maps import maps
from models.errors import CommandError

DEFAULT = 12  # questions that are shown: four of each family of questions about scenes
_LOOKED_AT = 10  # times as many are read at most
QUALITY = 75  # of WebP


def choose(questions: QuestionSet, count: int) -> list[int]:
    """Numbers of `count` questions, each about one image, of as many images as there are; fewer where there are fewer.

    Scenes are asked about three times, and each scene begins with another family: their first questions come first.
    """
    first, further, groups = list[int](), list[int](), set[int]()
    for index in range(min(len(questions), _LOOKED_AT * count)):
        if len(first) == count:
            break
        try:
            sample = questions.sample(index)
        except CommandError:  # it cannot be read; the run says so itself
            continue
        if len(sample.images) == 1:
            (further if sample.group in groups else first).append(index)
            groups.add(sample.group)
    return [*first, *further][:count]


def image_path(out: Path, sample: int) -> Path:
    """Where the image of a question is."""
    return out / "gallery" / f"{sample:d}.webp"


def save(records: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray], out: Path) -> None:
    """Write each record's image as the tower sees it."""
    for record, image in zip(records, images, strict=True):
        pictures.save(Image.fromarray(image), image_path(out, record["sample"]), quality=QUALITY)


def draw(
    records: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray], methods: Iterable[str], out: Path
) -> list[Path]:
    """A picture per family of questions: its first record, and what the first method leaves."""
    shown = next(name for name in methods if name != BASELINE)
    first = dict[str, int]()
    for number, record in enumerate(records):
        first.setdefault(record["family"], number)
    paths = []
    for family, number in first.items():
        record = records[number]
        own = next(one for one in record["maps"] if one["method"] == shown and one["answered"])
        survivors, assignment = maps.arrays_of(own, record["grid"] ** 2)
        stays, shape = np.isin(np.arange(assignment.size), survivors), (record["grid"], record["grid"])
        page = pictures.draw([pictures.View(images[number], assignment.reshape(shape), stays.reshape(shape))])
        paths.append(out / f"{family}.png")
        pictures.save(page, paths[-1])
    return paths
