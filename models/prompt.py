"""From what a Hugging Face processor gives to the static shapes of a compiled program. Host-side, NumPy only.

Rows are packed to the left and padded at the end, up to a bucket length, so that prompts of similar length share one
compiled program whichever side the processor padded.

Axis letters: B batch, S sequence, N visual tokens of a row.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

BUCKET = 64  # sequence lengths are rounded up to a multiple of this


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompt:
    """A batch, ready for the compiled program. A pytree.

    Attributes:
      input_ids: [B, S] int32, real tokens first.
      lengths: [B] int32, real tokens of each row.
      pixel_values: [images, C, height, width], or None where no row has an image.
      visual_positions: [B, N] int32, where the visual tokens stand. A row with fewer than N lists slots of its
        padding for the missing ones.
      visual_valid: [B, N] bool, False for these.
      visual_features: [B, N] int32, row of the images' concatenated features that goes there.
    """

    input_ids: Any
    lengths: Any
    pixel_values: Any
    visual_positions: Any
    visual_valid: Any
    visual_features: Any


def pack_order(attention_mask: np.ndarray) -> np.ndarray:
    """[B, S] bool -> [B, S] indices that bring each row's real tokens to the front, in order."""
    return np.argsort(~attention_mask, axis=1, kind="stable")


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def make_prompt(
    input_ids: Any,
    pixel_values: Any | None,
    attention_mask: Any | None,
    *,
    image_token_id: int,
    tokens_per_image: int,
    vocab_size: int,
    bucket: int = BUCKET,
) -> Prompt:
    """Pack, pad and check a processor's output.

    Args:
      input_ids: [B, S] integers, image placeholders expanded (one per visual token).
      pixel_values: [images, C, height, width] of all rows in order, or None.
      attention_mask: [B, S], non-zero for real tokens; None means all are.
      image_token_id: the placeholder.
      tokens_per_image: visual tokens that the tower gives for one image.
      vocab_size: ids must be below it.
      bucket: S is rounded up to a multiple of this.

    Returns:
      The packed batch.

    Raises:
      ValueError: shapes that do not belong together, ids outside the vocabulary, an empty row, or a number of
        placeholders that is not what the images bring.
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"input_ids has shape {ids.shape} and dtype {ids.dtype}; expected integers [B, S], not empty")
    mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {mask.shape}; expected that of input_ids, {ids.shape}")
    lengths = mask.sum(1)
    if not lengths.all():
        raise ValueError(f"row {int(np.argmin(lengths))} of attention_mask has no real token; drop the row")
    real = ids[mask]
    if real.min() < 0 or real.max() >= vocab_size:
        raise ValueError(
            f"input_ids holds ids from {real.min()} to {real.max()}; the vocabulary ends at {vocab_size - 1}"
        )

    visual = (ids == image_token_id) & mask
    counts = visual.sum(1)
    if pixel_values is not None and np.ndim(pixel_values) != 4:
        raise ValueError(f"pixel_values has shape {np.shape(pixel_values)}; expected [images, channels, height, width]")
    images = 0 if pixel_values is None else len(pixel_values)
    if counts.sum() != images * tokens_per_image or (counts % tokens_per_image).any():
        raise ValueError(
            f"input_ids holds {counts.tolist()} image placeholders per row, but {images} images bring "
            f"{tokens_per_image} visual tokens each; expand each image's placeholder with the checkpoint's processor"
        )

    ids = np.take_along_axis(ids, pack_order(mask), 1)
    most = int(counts.max())
    # A row with fewer visual tokens than the richest needs padding slots that stand for the missing ones.
    size = round_up(int((lengths + most - counts).max()), bucket)
    packed = np.zeros((len(ids), size), np.int32)
    positions = np.zeros((len(ids), most), np.int32)
    features = np.zeros((len(ids), most), np.int32)
    first = np.cumsum(counts) - counts
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        packed[row, :length] = ids[row, :length]
        positions[row, :count] = np.flatnonzero(packed[row, :length] == image_token_id)
        positions[row, count:] = length + np.arange(most - count)
        features[row, :count] = first[row] + np.arange(count)
    return Prompt(
        input_ids=packed,
        lengths=lengths.astype(np.int32),
        pixel_values=pixel_values,
        visual_positions=positions,
        visual_valid=np.arange(most)[None, :] < counts[:, None],
        visual_features=features,
    )
