"""Pictures of a carve, as in figure 1(c) of the paper: kept patches clear, merged ones tinted, dropped ones grey."""

from __future__ import annotations

import colorsys
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.engine.prefill import Prefilled
from models.llava import LlavaConfig

PANEL = 672  # pixels along each side of a panel, about: patches are scaled by whole numbers
MARGIN, GAP = 40, 28
PAPER, INK, FAINT, LINE = (255, 255, 255), (28, 30, 34), (112, 116, 124), (222, 224, 228)
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
    """What the first cut did to the images of one prompt.

    Args:
      images: uint8 [side, side, 3] each, as the tower sees them, in order.
      config: of the model.
      prefilled: of a batch.
      row: which of the batch.
    """
    size = config.tokens_per_image
    if prefilled.cuts:
        fate, survivors = (np.asarray(x[row]) for x in (prefilled.cuts[0].assignment, prefilled.cuts[0].indices))
    else:  # nothing was cut
        fate = survivors = np.arange(size * len(images))
    views = []
    for i, image in enumerate(images):
        first = i * size + int(config.keep_class_token)
        views.append(View(image, fate[first : first + config.vision.num_patches], survivors, first))
    return views


def group_colours(assignment: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """A colour for each survivor that more than one token lives on in.

    Args:
      assignment: [N] of all images together.

    Returns:
      RGB by survivor. Neighbours in the list are far apart in hue.
    """
    rows, counts = np.unique(assignment[assignment >= 0], return_counts=True)
    groups = rows[counts > 1].tolist()
    turn = (math.sqrt(5) - 1) / 2
    return {row: _rgb(0.02 + turn * i, (0.92, 0.68)[i % 2], (0.95, 0.85, 1.0)[i % 3]) for i, row in enumerate(groups)}


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def scale_of(side: int) -> int:
    """By which whole number an image of `side` pixels is enlarged."""
    return max(1, round(PANEL / side))


def enlarge(image: np.ndarray) -> np.ndarray:
    """The image as both panels show it."""
    height, width = image.shape[:2]
    scale = scale_of(width)
    return np.asarray(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def carved_panel(view: View, colours: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """The image with its fate painted over it.

    Args:
      view: the image.
      colours: from `group_colours`, for all images together.

    Returns:
      uint8 [height, width, 3], the size of `enlarge(view.image)`. Kept patches are equal to it in every pixel; merged
      ones share their group's tint, and the one that stayed in place is framed.
    """
    pixels = enlarge(view.image).astype(np.float32)
    grid = math.isqrt(view.assignment.size)
    if grid * grid != view.assignment.size or pixels.shape[0] % grid or pixels.shape[1] % grid:
        raise ValueError(f"{view.assignment.size} patches are no square grid on {pixels.shape[0]} pixels")
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


def draw(views: Sequence[View], *, question: str, lines: Sequence[tuple[str, str]]) -> Image.Image:
    """A page: the question, each image beside its carve, a legend, and what was answered.

    Args:
      views: the images of one prompt, in order, all of one carve.
      question: the headline.
      lines: (label, text) pairs under the pictures.

    Returns:
      The page.
    """
    everything = np.concatenate([view.assignment for view in views])
    colours = group_colours(everything)
    panels = [(enlarge(view.image), carved_panel(view, colours)) for view in views]
    height, side = panels[0][0].shape[:2]
    width = 2 * MARGIN + 2 * side + GAP
    title, body, small = (ImageFont.load_default(size) for size in (30, 22, 18))
    headline = _wrap(question, title, width - 2 * MARGIN)
    label_width = 28 + max((math.ceil(body.getlength(label)) for label, _ in lines), default=0)
    answers = [(label, _wrap(text, body, width - 2 * MARGIN - label_width)) for label, text in lines]
    top = MARGIN + 40 * len(headline) + 16
    under = top + len(panels) * (height + GAP) - GAP
    page_height = under + 62 + 34 * sum(len(text) for _, text in answers) + 12 + MARGIN - 10
    page = Image.new("RGB", (width, page_height), PAPER)
    pen = ImageDraw.Draw(page)
    for i, text in enumerate(headline):
        pen.text((MARGIN, MARGIN + 40 * i), text, fill=INK, font=title, anchor="lt")
    for i, pair in enumerate(panels):
        for j, panel in enumerate(pair):
            page.paste(Image.fromarray(panel), (MARGIN + j * (side + GAP), top + i * (height + GAP)))
    _legend(pen, (MARGIN + side + GAP, under + 16), side, everything, colours, small)
    pen.text((MARGIN, under + 16), "what the model is shown", fill=FAINT, font=small, anchor="lt")
    y = under + 62
    pen.line((MARGIN, y - 14, width - MARGIN, y - 14), fill=LINE)
    for label, texts in answers:
        pen.text((MARGIN, y), label, fill=FAINT, font=body)
        for text in texts:
            pen.text((MARGIN + label_width, y), text, fill=INK, font=body)
            y += 34
    return page


def _legend(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    width: int,
    assignment: np.ndarray,
    colours: dict[int, tuple[int, int, int]],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Three swatches with counts of patches, spread over `width`."""
    (x, y), end = at, at[0] + width
    merged = int(np.isin(assignment, list(colours)).sum())
    dropped = int((assignment < 0).sum())
    kept = assignment.size - merged - dropped
    tints = list(colours.values())[:4] or [PAPER]
    entries = (
        (f"{kept} kept", [PAPER]),
        (f"{merged} merged into {len(colours)}, framed", tints),
        (f"{dropped} dropped", [FOG]),
    )
    for text, swatch in entries:
        for i, colour in enumerate(swatch):
            tint = colour if colour in (PAPER, FOG) else tuple(round(255 + _TINT * 1.3 * (c - 255)) for c in colour)
            pen.rectangle((x + 9 * i, y, x + 9 * i + 15, y + 15), fill=tint, outline=FAINT if tint == PAPER else None)
        x += 9 * len(swatch) + 16
        pen.text((x, y), text, fill=FAINT, font=font, anchor="lt")
        x += math.ceil(font.getlength(text)) + 24
        if x > end:
            break


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a text into lines that fit."""
    lines = [""]
    for word in text.split() or [""]:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def save(page: Image.Image, path: Path) -> None:
    """Write a page so that the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    page.save(part)
    part.replace(path)
