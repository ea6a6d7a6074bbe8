"""How an image becomes the square that the tower sees: padded, as LLaVA-1.5's evaluation has it, or cropped.

"pad": the image stands centred on a square of the mean colour, which is then scaled (LLaVA's `expand2square`, then
CLIP's preprocessing). "crop": the shorter side is scaled, and the longer one cropped around its centre, as the
processors of llava-hf checkpoints do; of a photograph of 640 x 480 a quarter is lost.

Axis letters: N visual tokens of an image.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from PIL import Image

from models.errors import CommandError

ASPECT_RATIOS = ("pad", "crop", "checkpoint")
BORDERS = ("keep", "last", "drop")
_SHARED = (
    *("do_resize", "size", "resample", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_convert_rgb"),
)


def with_aspect_ratio(image_processor: Any, aspect_ratio: str) -> Any:
    """An image processor that brings images to a square in this way, and does everything else as the given one.

    Args:
      image_processor: of a checkpoint.
      aspect_ratio: "pad" or "crop"; "checkpoint" leaves it as it is.

    Raises:
      CommandError: it cuts images into tiles.
    """
    if aspect_ratio == "checkpoint":
        return image_processor
    if (own := aspect_ratio_of(image_processor)) in ("anyres", "native"):
        way = "cut them into tiles" if own == "anyres" else "keep their shape"
        raise CommandError(
            f"images do not become squares by {aspect_ratio!r}: the checkpoint's own way is to {way}; pass "
            "--image-aspect-ratio=checkpoint"
        )
    # Imported here: it takes a second or more that `--help` should not wait for.
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    fields = {name: getattr(image_processor, name) for name in _SHARED if hasattr(image_processor, name)}
    return LlavaImageProcessorPil(**fields, do_center_crop=True, do_pad=aspect_ratio == "pad")


def aspect_ratio_of(image_processor: Any) -> str:
    """What a processor does, as results tell it: "pad", "crop", "anyres" (tiles), "native" (Qwen), or "stretch"."""
    if hasattr(image_processor, "merge_size"):
        return "native"
    if getattr(image_processor, "image_grid_pinpoints", None):
        return "anyres"
    # CLIP's own processor has no such step, whatever its `do_pad` says.
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        return "pad"
    return "crop" if getattr(image_processor, "do_center_crop", False) else "stretch"


def size_of(image: Any) -> tuple[int, int]:
    """Width and height in pixels of a PIL image or an array [height, width, channels]."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def border(size: tuple[int, int], side: int) -> np.ndarray:
    """Which patches of a padded image show nothing of it.

    Args:
      size: width and height of the image before it is padded.
      side: patches along each side of the square.

    Returns:
      [side * side] bool, row by row. A patch that the image's edge runs through is no border.

    >>> border((640, 480), 24).sum()  # of 576
    144
    """
    square = max(size)
    edges = np.arange(side + 1) * square  # of the patches, in pixels of the square times `side`: whole numbers
    inside = []
    for length in size:
        first = (square - length) // 2
        inside.append((edges[1:] > first * side) & (edges[:-1] < (first + length) * side))
    columns, rows = inside
    return ~(rows[:, None] & columns).reshape(-1)


def add_aspect_ratio_flag(parser: argparse._ActionsContainer, *, default: str) -> None:
    """Add `--image-aspect-ratio`, for a command that does `default` without it."""
    parser.add_argument(
        "--image-aspect-ratio",
        choices=ASPECT_RATIOS,
        default=default,
        help="how images become squares: padded with the mean colour, as LLaVA-1.5 is evaluated, cropped around the "
        f"centre, or as the checkpoint's own processor does it (default: {default})",
    )
