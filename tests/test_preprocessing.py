"""Images become squares as LLaVA's do, in every pixel; and which patches are border follows from the areas."""

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from experiments.core import preprocessing
from experiments.data.image_files import open_image
from experiments.data.tiny_processor import build_processor
from models.errors import CommandError

SIDE = 336
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
CASES = [
    *((size, "RGB") for size in ((640, 480), (480, 640), (641, 479), (97, 211), (336, 336), (337, 335), (30, 31))),
    *(((75, 50), mode) for mode in ("L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "YCbCr", "F")),
    ((400, 3), "RGB"),
    ((1, 5), "RGB"),
]


def picture(size, mode, seed=0):
    """Noise in large and small patches, so that resizing and shifting show."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 4), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
    pixels = np.asarray(coarse) // 2 + rng.integers(0, 128, (size[1], size[0], 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(256 * pixels[..., 0].astype(np.uint16) + pixels[..., 1])
    return Image.fromarray(pixels).convert("RGB").convert(mode) if mode != "RGBA" else Image.fromarray(pixels)


def padded(image):
    """LLaVA's expand2square, which is told the mean colour in whole numbers."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def clip(image):
    """CLIP's preprocessing: the shorter side to 336, bicubic, the centre."""
    width, height = image.size
    short = min(width, height)
    size = (SIDE * width // short, SIDE * height // short)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))[top : top + SIDE, left : left + SIDE]
    return np.moveaxis((pixels / 255 - MEAN) / STD, -1, 0)


def values(aspect_ratio, image):
    own = preprocessing.with_aspect_ratio(build_processor().image_processor, aspect_ratio)
    return own(image, return_tensors="np")["pixel_values"]


@pytest.mark.parametrize(("size", "mode"), CASES)
def test_pad(size, mode):
    """From the file on."""
    file = io.BytesIO()
    picture(size, mode).save(file, format="PNG" if mode in ("RGB", "L", "LA", "P", "RGBA", "1", "I;16") else "TIFF")
    (got,) = values("pad", open_image(file.getvalue(), upright=False))
    with Image.open(file) as image:
        assert image.mode == mode
        eight_bits = Image.fromarray((np.asarray(image) // 256).astype(np.uint8)) if mode == "I;16" else image
        want = clip(padded(eight_bits.convert("RGB")))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)  # a level is 0.014


@pytest.mark.parametrize("size", [(640, 480), (481, 640), (336, 336), (90, 57)])
def test_crop(size):
    image = picture(size, "RGB")
    for how in ("crop", "checkpoint"):
        (got,) = values(how, image)
        np.testing.assert_allclose(got, clip(image), rtol=0, atol=2e-6)


def test_names():
    processor = build_processor().image_processor
    assert preprocessing.aspect_ratio_of(processor) == "crop"
    processor.do_pad = True  # which CLIP's own processor passes over
    assert preprocessing.aspect_ratio_of(processor) == "crop"
    padding = preprocessing.with_aspect_ratio(processor, "pad")
    assert preprocessing.aspect_ratio_of(padding) == "pad"
    assert preprocessing.aspect_ratio_of(preprocessing.with_aspect_ratio(padding, "checkpoint")) == "pad"
    assert preprocessing.aspect_ratio_of(preprocessing.with_aspect_ratio(padding, "crop")) == "crop"


def test_tiles_do_not_become_squares():
    processor = build_processor().image_processor
    processor.image_grid_pinpoints = [[336, 672]]
    with pytest.raises(CommandError, match="into tiles"):
        preprocessing.with_aspect_ratio(processor, "pad")


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ((640, 480), 24),
        ((480, 640), 24),
        ((641, 480), 24),
        ((7, 5), 4),
        ((336, 336), 24),
        ((1, 999), 24),
        ((500, 333), 5),
    ],
)
def test_border_by_areas(size, side):
    """A patch is border where no part of it, however small, shows the image."""
    square = max(size)
    shows = []
    for length in size:
        first, patch = (square - length) // 2, Fraction(square, side)
        overlap = [min(first + length, (i + 1) * patch) - max(first, i * patch) for i in range(side)]
        shows.append(np.array([part > 0 for part in overlap]))
    want = ~np.outer(shows[1], shows[0])
    np.testing.assert_array_equal(preprocessing.border(size, side), want.reshape(-1))
    assert want.sum() == {(640, 480): 144, (480, 640): 144, (336, 336): 0}.get(size, want.sum())


def test_border_is_what_pads():
    """Of a white image, patches that are border have the colour of the mean and no other."""
    image = Image.new("RGB", (300, 200), "white")
    (got,) = values("pad", image)
    patches = got.reshape(3, 24, 14, 24, 14).transpose(1, 3, 0, 2, 4).reshape(576, 3, -1)
    grey = (np.array([122, 116, 104]) / 255 - MEAN) / STD
    plain = np.abs(patches - grey[:, None]).max((1, 2)) < 1e-5
    border = preprocessing.border((300, 200), 24)
    assert border.sum() == 24 * 8
    assert not (plain & ~border).any()
    carried = np.flatnonzero(border & ~plain) // 24  # rows beside the edge: bicubic scaling blurs it
    assert set(carried.tolist()) <= {3, 20}
