"""Pictures of a carve, as in figures 1(c) and 3 of the paper: the input, what passes stage I, what stage II leaves."""

from __future__ import annotations

import colorsys
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.reports.patch_maps.maps import grid_of, joined
from models.engine.prefill import Prefilled
from models.io.writing import replacing
from models.llava import LlavaConfig

PANEL = 672  # pixels along each side of a panel, about: patches are scaled by whole numbers
GAP = 28
PAPER = (255, 255, 255)
FOG = (226, 228, 232)  # dropped patches fade to this
_FADE, _TINT = 0.82, 0.5  # how far


@dataclasses.dataclass(frozen=True)
class View:
    """One image and what became of its patches.

    Attributes:
      image: uint8 [side, side, 3], as the tower sees it.
      assignment: [N] the survivor that each patch lives on in, or -1 where it was dropped. Groups may span images.
      survivors: [K] which of all visual tokens the survivors are, in ascending order.
      first: which of all visual tokens the first patch is.
    """

    image: np.ndarray
    assignment: np.ndarray
    survivors: np.ndarray
    first: int = 0


def views_of(images: Sequence[np.ndarray], config: LlavaConfig, prefilled: Prefilled, row: int = 0) -> list[View]:
    """What the cuts did to the images of one prompt.

    Args:
      images: uint8 [side, side, 3] each, as the tower sees them, in order.
      config: of the model.
      prefilled: of a batch.
      row: which of the batch.
    """
    size = config.tokens_per_image
    survivors, assignment = joined(prefilled.cuts, row, size * len(images))
    firsts = [i * size + int(config.keep_class_token) for i in range(len(images))]
    return [
        View(image, assignment[first : first + config.vision.num_patches], survivors, first)
        for image, first in zip(images, firsts, strict=True)
    ]


def group_colours(assignment: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """A colour for each survivor that more than one token lives on in.

    Args:
      assignment: [N] of all images together.

    Returns:
      RGB by survivor. Neighbours in the list are far apart in hue.
    """
    rows, counts = np.unique(assignment[assignment >= 0], return_counts=True)
    groups = rows[counts > 1].tolist()
    turn, colours = (math.sqrt(5) - 1) / 2, {}
    for i, row in enumerate(groups):
        red, green, blue = colorsys.hsv_to_rgb((0.02 + turn * i) % 1, (0.92, 0.68)[i % 2], (0.95, 0.85, 1.0)[i % 3])
        colours[row] = round(red * 255), round(green * 255), round(blue * 255)
    return colours


def scale_of(side: int) -> int:
    """By which whole number an image of `side` pixels is enlarged."""
    return max(1, round(PANEL / side))


def enlarge(image: np.ndarray) -> np.ndarray:
    """The image as both panels show it."""
    height, width = image.shape[:2]
    scale = scale_of(width)
    return np.asarray(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def carved_panel(view: View, colours: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """The image with what became of its patches painted over it.

    Args:
      view: the image.
      colours: from `group_colours`, for all images together.

    Returns:
      uint8 [height, width, 3], the size of `enlarge(view.image)`. Kept patches are equal to it in every pixel; merged
      ones share their group's tint, and the one that stayed in place is framed; a group without a colour is clear.
    """
    pixels = enlarge(view.image).astype(np.float32)
    grid = grid_of(view.assignment.size)
    if pixels.shape[0] % grid or pixels.shape[1] % grid:
        raise ValueError(f"a grid of {grid} x {grid} patches does not divide {pixels.shape[0]} pixels")
    patch = pixels.shape[0] // grid
    frame = max(2, patch // 12)
    for index, row in enumerate(view.assignment.tolist()):
        y, x = (patch * part for part in divmod(index, grid))
        area = pixels[y : y + patch, x : x + patch]
        if row < 0:
            grey = area @ np.array([0.299, 0.587, 0.114], np.float32)
            area[:] = (1 - _FADE) * grey[..., None] + _FADE * np.array(FOG, np.float32)
        elif row in colours:
            colour = np.array(colours[row], np.float32)
            whole = area.copy()
            area[:] = (1 - _TINT) * whole + _TINT * colour
            if view.survivors[row] == view.first + index:
                inner = area[frame:-frame, frame:-frame].copy()
                area[:] = colour
                area[frame:-frame, frame:-frame] = inner
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def draw(views: Sequence[View]) -> Image.Image:
    """Each image, what is left of it in any form (stage I), and what stands or merges (stage II), side by side.

    Where nothing merges the two stages are one, and so are their panels.

    Args:
      views: the images of one prompt, in order, all of one carve.

    Returns:
      The picture.
    """
    colours = group_colours(np.concatenate([view.assignment for view in views]))
    stages = [{}, colours] if colours else [{}]
    rows = [[enlarge(view.image), *(carved_panel(view, tints) for tints in stages)] for view in views]
    height, side = rows[0][0].shape[:2]
    columns = 1 + len(stages)
    picture = Image.new("RGB", (columns * (side + GAP) - GAP, len(rows) * (height + GAP) - GAP), PAPER)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            picture.paste(Image.fromarray(panel), (column * (side + GAP), row * (height + GAP)))
    return picture


def save(page: Image.Image, path: Path, **options: Any) -> None:
    """Write a page so that the file appears whole or not at all; the options are those of Pillow for its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        page.save(part, **options)
