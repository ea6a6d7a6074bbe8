"""Everything that is pasted into a scene: photographs, letters, handwritten digits and shapes.

All of it is made once per process, on first use, from what scikit-learn and Pillow ship. Nothing is downloaded.
Training and held-out scenes never share a pixel of a photograph nor a sample of a digit.
"""

import gzip
import importlib.util
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from experiments.data.scenes.vocabulary import LETTERS, PATCH, SHAPES

Split = Literal["train", "test"]
"""Which half of the world a scene is made of."""

TRAIN_COLUMNS = 0.6
"""The left part of each photograph that belongs to training; the rest is held out."""

_FINE = 8  # Shapes, plates and letters are drawn this many times larger, then averaged down.
_WRITERS = 60  # Digits that follow each other come from the same few writers, so the split goes by blocks of them.


@cache
def photos(split: Split) -> tuple[Image.Image, ...]:
    """The regions of the two sample photographs that belong to `split`."""
    images = [Image.open(_shipped(f"images/{name}.jpg")) for name in ("china", "flower")]
    borders = [round(image.width * TRAIN_COLUMNS) for image in images]
    return tuple(
        image.crop((0, 0, border, image.height) if split == "train" else (border, 0, image.width, image.height))
        for image, border in zip(images, borders, strict=True)
    )


@cache
def handwritten() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's digits: ink in 0..16, float64 [samples, 8, 8], and which digit each is, int [samples]."""
    with gzip.open(_shipped("data/digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


def _shipped(name: str) -> Path:
    """A file of `sklearn.datasets`, which takes a second to import."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "datasets" / name


def digit_indices(split: Split) -> np.ndarray:
    """The indices into `load_digits` that belong to `split`: every fifth block of 60 samples is held out."""
    block = np.arange(len(handwritten()[1])) // _WRITERS
    return np.flatnonzero((block % 5 == 4) == (split == "test"))


@cache
def digits(split: Split) -> tuple[np.ndarray, ...]:
    """Ink masks of real handwritten digits, for each class 0..9 a float32 array [samples, 14, 14] in 0..1."""
    images, values = handwritten()
    chosen = digit_indices(split)
    masks = np.stack([_digit_mask(image) for image in images[chosen]])
    return tuple(masks[values[chosen] == value] for value in range(10))


def _digit_mask(image: np.ndarray) -> np.ndarray:
    """One 8 x 8 digit as the ink of one patch, with a margin of one pixel."""
    ink = Image.fromarray((image * (255 / 16)).astype(np.uint8)).resize(
        (PATCH - 2, PATCH - 2), Image.Resampling.BICUBIC
    )
    slim = np.clip((np.asarray(ink, np.float32) / 255 - 0.1) / 0.85, 0, 1) ** 1.25  # keeps the holes of 6, 8 and 9 open
    return np.pad(slim, 1)


@cache
def letters() -> np.ndarray:
    """Ink masks of the letters A..Z in Pillow's own font, float32 [26, 14, 14] in 0..1."""
    return np.stack([_letter_mask(letter) for letter in LETTERS])


def _letter_mask(letter: str) -> np.ndarray:
    """One letter, centred on a patch; the wide ones are narrowed until they fit."""
    side = PATCH * _FINE
    font = ImageFont.load_default(size=14.5 * _FINE)
    canvas = Image.new("L", (2 * side, 2 * side))
    ImageDraw.Draw(canvas).text((side, side), letter, fill=255, font=font, anchor="mm", stroke_width=_FINE // 2)
    box = canvas.getbbox()
    assert box is not None
    glyph = canvas.crop(box)
    width, height = min(glyph.width, 11 * _FINE), 10 * _FINE
    page = Image.new("L", (side, side))
    page.paste(glyph.resize((width, height), Image.Resampling.LANCZOS), ((side - width) // 2, (side - height) // 2))
    return _shrink(page)


@cache
def plate(patches: int) -> np.ndarray:
    """The mask of a plate of 1 x `patches` patches with round corners, float32 [14, 14 * patches] in 0..1."""
    page = Image.new("L", (PATCH * patches * _FINE, PATCH * _FINE))
    ImageDraw.Draw(page).rounded_rectangle((0, 0, page.width - 1, page.height - 1), radius=3 * _FINE, fill=255)
    return _shrink(page)


@cache
def shapes() -> np.ndarray:
    """The shapes as stickers: float32 [6, 3, 28, 28] in 0..1, the masks of the fill, the white rim and the shadow."""
    return np.stack([_sticker(shape) for shape in SHAPES])


def _sticker(shape: str) -> np.ndarray:
    """Fill, fill with its rim, and a soft shadow of one shape."""
    fill = _shape(shape)
    grow = ImageFilter.GaussianBlur(1.2 * _FINE)
    rim = fill.filter(grow).point(lambda v: 255 if v > 24 else 0)
    shadow = ImageChops.offset(rim, 0, _FINE).filter(ImageFilter.GaussianBlur(_FINE))
    return np.stack([_shrink(fill), _shrink(rim), _shrink(shadow)])


def _shape(shape: str) -> Image.Image:
    """A black and white drawing of `shape` on 2 x 2 patches, `_FINE` times larger than life."""
    side = 2 * PATCH * _FINE
    page = Image.new("L", (side, side))
    pen, middle, r = ImageDraw.Draw(page), side / 2, 11.5 * _FINE
    square = (middle - r, middle - r, middle + r, middle + r)

    if shape in ("circle", "ring"):
        pen.ellipse(square, fill=255)
        if shape == "ring":
            hole = 6.0 * _FINE
            pen.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)
    elif shape == "square":
        inset = 1.5 * _FINE
        pen.rectangle((square[0] + inset, square[1] + inset, square[2] - inset, square[3] - inset), fill=255)
    elif shape == "triangle":
        pen.polygon([(middle, middle - r), (middle + r, middle + 0.8 * r), (middle - r, middle + 0.8 * r)], fill=255)
    elif shape == "star":
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        radii = np.tile((1.1 * r, 0.46 * r), 5)
        points = np.stack([middle + radii * np.cos(angles), middle + 0.06 * r + radii * np.sin(angles)], 1)
        pen.polygon(list(map(tuple, points.tolist())), fill=255)
    else:  # a cross
        arm = 3.8 * _FINE
        pen.rectangle((middle - arm, square[1], middle + arm, square[3]), fill=255)
        pen.rectangle((square[0], middle - arm, square[2], middle + arm), fill=255)
    return page


def _shrink(page: Image.Image) -> np.ndarray:
    """Average a drawing down to its real size, as a float32 mask in 0..1."""
    small = page.resize((page.width // _FINE, page.height // _FINE), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255
