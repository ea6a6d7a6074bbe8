"""Images that question files name, as LLaVA's scripts open them: whatever Pillow reads, its first frame, not turned."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path, PurePosixPath

from PIL import Image

from experiments.data.image_files import open_image
from models.errors import CommandError

_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # of the square that an image is padded to


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
    """The image in a file; `name` is for messages. Errors as in `open_image`, and a square that is too large."""
    return checked(open_image(path, f"image {name!r}", upright=False), name)


def read_base64(text: str, name: str) -> Image.Image:
    """The image that stands in a table. Errors as in `read_file`."""
    try:
        content = base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise CommandError(f"image {name!r}: no base64 ({error})") from error
    return checked(open_image(content, f"image {name!r}", upright=False), name)


def checked(image: Image.Image, name: str) -> Image.Image:
    """The image itself.

    Raises:
      CommandError: the square that it is padded to would be too large.
    """
    if max(image.size) ** 2 > _MAX_PIXELS:
        width, height = image.size
        raise CommandError(f"image {name!r} of {width} x {height} pixels is too long to be padded to a square")
    return image
