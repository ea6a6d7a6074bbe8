"""The gallery of a run on the disk: images for the report, and pictures for papers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.metrics.summary import BASELINE
from experiments.reports import pictures
from experiments.reports.patch_maps import fates

FOLDER = "gallery"
_QUALITY = 75  # of WebP


def image_path(out: Path, sample: int) -> Path:
    """Where the image of a question is."""
    return out / FOLDER / f"{sample:d}.webp"


def save(records: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray], out: Path) -> None:
    """Write each record's image as the tower sees it."""
    for record, image in zip(records, images, strict=True):
        pictures.save(Image.fromarray(image), image_path(out, record["sample"]), quality=_QUALITY)


def draw(
    records: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray], methods: Iterable[str], out: Path
) -> list[Path]:
    """A picture per family of questions: its first record, and what the first method leaves."""
    shown = next(name for name in methods if name != BASELINE)
    first = {record["family"]: number for number, record in reversed(list(enumerate(records)))}
    paths = []
    for family, number in sorted(first.items(), key=lambda item: item[1]):
        record = records[number]
        (fate, *_) = (one for one in record["maps"] if one["method"] == shown and one["answered"])
        survivors, assignment = fates.assignment(record["grid"] ** 2, fate)
        page = pictures.draw([pictures.View(images[number], assignment, survivors)])
        paths.append(out / f"{family}.png")
        pictures.save(page, paths[-1])
    return paths
