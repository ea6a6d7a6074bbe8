"""Images that anyone may have made: the one place that opens them."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from models.errors import CommandError
from models.io.untrusted import file_problem, parsing

MAX_ASPECT = 200
"""Longer side over shorter: a processor scales the shorter one to hundreds of pixels, and the longer one with it."""
_RUN_PROGRAMS = {"EPS", "WMF"}  # Pillow hands these to Ghostscript or to Windows


@functools.cache
def formats() -> tuple[str, ...]:
    """Names of the formats that are read: all of Pillow's but those that it leaves to other programs."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _RUN_PROGRAMS))


def open_image(source: Path | bytes, name: str | None = None, *, upright: bool = True) -> Image.Image:
    """Read an image whole and RGB.

    Args:
      source: a file, or the bytes of one.
      name: for messages; that of the file where None.
      upright: turn it as its EXIF says.

    Returns:
      The image, in memory.

    Raises:
      CommandError: no file, no image that Pillow reads whole, more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, a side
        more than `MAX_ASPECT` times the other, or numbers beyond 16 bits.
    """
    name = str(source if isinstance(source, Path) else "image") if name is None else name
    if isinstance(source, Path) and (problem := file_problem(source)):
        raise CommandError(f"{name} {problem}")
    with parsing(name, CommandError):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats()) as image:
                if max(image.size) > MAX_ASPECT * min(image.size):
                    width, height = image.size
                    raise CommandError(
                        f"{name} is {width} x {height} pixels; one side may be {MAX_ASPECT} of the other"
                    )
                turned = ImageOps.exif_transpose(image) if upright else image
                return _eight_bits(turned, image.format, name).convert("RGB")
        except Image.UnidentifiedImageError:
            raise CommandError(f"{name} cannot be read as an image (unknown format)") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise CommandError(f"{name} has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller") from None


def _eight_bits(image: Image.Image, kind: str | None, name: str) -> Image.Image:
    """The image itself, or its high bytes where it has 16 bits, as Pillow does it for colours by itself.

    Raises:
      CommandError: its 32-bit numbers have no range that is known: Pillow would clip them to white or to black.
    """
    if image.mode.startswith("I;16") or (image.mode, kind) == ("I", "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        array = np.asarray(image)
        low, high = array.min(), array.max()
        if not (0 <= low <= high <= 255) or (image.mode == "F" and 0 < high <= 1):
            raise CommandError(f"{name} has 32-bit numbers from {low:g} to {high:g}; save it with 8 or 16 bits")
    return image
