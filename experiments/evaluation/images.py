"""Images that question files name, as LLaVA's scripts open them: whatever Pillow reads, its first frame, not turned."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import struct
import warnings
from pathlib import Path, PurePosixPath

from PIL import Image

from experiments.cli import CommandError

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # where Pillow refuses; of the padded square too
MAX_ASPECT = 200  # a crop scales the shorter side to hundreds of pixels, and the longer one with it


@functools.cache
def _formats() -> tuple[str, ...]:
    """All of Pillow's but those that it hands to other programs."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - {"EPS", "WMF"}))


def path_inside(folder: Path, name: str) -> Path:
    """Where a file's image is.

    Raises:
      CommandError: the name leads out of the folder. Links that lie in the folder are followed.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or Path(name).is_absolute() or "\0" in name:
        raise CommandError(f"image {name!r} is not a path inside the images' folder")
    return folder / parts


def read_file(path: Path, name: str) -> Image.Image:
    """The image in a file; `name` is for messages. Errors as in `read_bytes`."""
    try:
        return read_bytes(path.read_bytes(), name)
    except OSError as error:
        raise CommandError(f"image {name!r}: {(error.strerror or str(error)).lower()}") from error


def read_base64(text: str, name: str) -> Image.Image:
    """The image that stands in a table. Errors as in `read_bytes`."""
    try:
        return read_bytes(base64.b64decode(text), name)
    except (binascii.Error, ValueError) as error:
        raise CommandError(f"image {name!r}: no base64 ({error})") from error


def read_bytes(content: bytes, name: str) -> Image.Image:
    """An image, whole and RGB.

    Raises:
      CommandError: what Pillow does not read whole, more than `MAX_PIXELS`, also of the square around it, or a side
        that is more than `MAX_ASPECT` times the other.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be read is an error here
        try:
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                if max(image.size) ** 2 > MAX_PIXELS or max(image.size) > MAX_ASPECT * min(image.size):
                    width, height = image.size
                    raise CommandError(f"image {name!r} is too large or too long: {width} x {height} pixels")
                return image.convert("RGB")
        except Image.UnidentifiedImageError as error:
            raise CommandError(f"image {name!r}: unknown format") from error
        except (
            *(OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError),
            *(MemoryError, struct.error, Image.DecompressionBombError),
        ) as error:
            raise CommandError(f"image {name!r} cannot be read ({' '.join(str(error).split())})") from error
