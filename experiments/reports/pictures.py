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

from experiments.reports.patch_maps.maps import joined
from models.engine import visual
from models.engine.prefill import Prefilled
from models.engine.prompt import Prompt
from models.io.writing import replacing

PANEL = 672  # pixels along the longer side of a panel, about: images are enlarged by whole numbers
ROWS = 6  # of panels of that size; pictures of more images have smaller ones, in several columns
GAP = 28
PAPER = (255, 255, 255)
FOG = (226, 228, 232)  # dropped patches fade to this
_FADE, _TINT = 0.82, 0.5  # how far
_LARGER = 0.75  # how much of an image a panel must show for it to stay as large as it is


@dataclasses.dataclass(frozen=True)
class View:
    """One image and what became of its tokens, which divide it evenly. Groups may span images."""

    image: np.ndarray  # uint8 [height, width, 3], as the tower sees it
    assignment: np.ndarray  # [rows, columns] the survivor that each token lives on in, or -1 where it was dropped
    stays: np.ndarray  # [rows, columns] bool, whether it is a survivor itself


def views_of(
    seen: Sequence[visual.View], images: Sequence[np.ndarray], prompt: Prompt, prefilled: Prefilled, row: int = 0
) -> list[View]:
    """What the cuts did to the images of one prompt.

    Args:
      seen: from the model's `views`.
      images: of each its pixels as uint8 [height, width, 3].
      prompt: a batch.
      prefilled: of it.
      row: which of the batch.
    """
    valid = np.asarray(prompt.visual_valid[row])
    survivors, assignment = joined(prefilled.cuts, row, valid.size)
    places, stays = np.flatnonzero(valid), np.isin(np.arange(valid.size), survivors)
    slots = [places[one.tokens] for one in seen]
    return [View(image, assignment[own], stays[own]) for image, own in zip(images, slots, strict=True)]


def group_colours(assignment: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """A colour for each survivor that more than one token lives on in.

    Args:
      assignment: [N] or [rows, columns], of all images together.

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


def enlarge(image: np.ndarray, panel: int = PANEL) -> np.ndarray:
    """The image as all panels of that size show it: by a whole number, or smaller where it is too large."""
    height, width = image.shape[:2]
    scale = panel / max(height, width)
    scale = max(1, round(scale)) if scale > _LARGER else scale
    size = round(width * scale), round(height * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def carved_panel(view: View, colours: dict[int, tuple[int, int, int]], panel: int = PANEL) -> np.ndarray:
    """The image with what became of its tokens painted over it.

    Args:
      view: the image.
      colours: from `group_colours`, for all images together.
      panel: as for `enlarge`.

    Returns:
      uint8 [height, width, 3], the size of `enlarge(view.image, panel)`. Kept tokens are equal to it in every pixel;
      merged ones share their group's tint, and the one that stayed in place is framed; a group without a colour is
      clear.
    """
    pixels = enlarge(view.image, panel).astype(np.float32)
    ys, xs = (
        np.rint(np.linspace(0, length, parts + 1)).astype(int).tolist()
        for length, parts in zip(pixels.shape, view.assignment.shape, strict=False)
    )
    frame = max(2, ys[1] // 12)
    for (y, x), row in np.ndenumerate(view.assignment):
        area = pixels[ys[y] : ys[y + 1], xs[x] : xs[x + 1]]
        if row < 0:
            grey = area @ np.array([0.299, 0.587, 0.114], np.float32)
            area[:] = (1 - _FADE) * grey[..., None] + _FADE * np.array(FOG, np.float32)
        elif row in colours:
            colour = np.array(colours[row], np.float32)
            whole = area.copy()
            area[:] = (1 - _TINT) * whole + _TINT * colour
            if view.stays[y, x]:
                inner = area[frame:-frame, frame:-frame].copy()
                area[:] = colour
                area[frame:-frame, frame:-frame] = inner
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def draw(views: Sequence[View]) -> Image.Image:
    """The images of one prompt: each, what is left of it (stage I), and what is kept or merged (stage II), in a row.

    Where nothing merges the two stages are one, and so are their panels. Many images (the frames of a video) go on
    beside the first.
    """
    colours = group_colours(np.concatenate([view.assignment.reshape(-1) for view in views]))
    stages = [{}, colours] if colours else [{}]
    rows = max(ROWS, math.isqrt(len(views) * (1 + len(stages))))
    panel = PANEL * ROWS // rows
    made = [[enlarge(view.image, panel), *(carved_panel(view, tints, panel) for tints in stages)] for view in views]
    height, width = (max(panels[0].shape[axis] for panels in made) + GAP for axis in (0, 1))
    across = -(-len(made) // rows) * (1 + len(stages))
    picture = Image.new("RGB", (across * width - GAP, min(rows, len(made)) * height - GAP), PAPER)
    for number, panels in enumerate(made):
        column, row = divmod(number, rows)
        for stage, one in enumerate(panels):
            picture.paste(Image.fromarray(one), ((column * len(panels) + stage) * width, row * height))
    return picture


def save(page: Image.Image, path: Path, **options: Any) -> None:
    """Write a page so that the file appears whole or not at all; the options are those of Pillow for its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        page.save(part, **options)
