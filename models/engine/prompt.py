"""From what a Hugging Face processor gives to the static shapes of a compiled program. Host-side, NumPy only.

Rows are packed to the left and padded at the end, up to a bucket length, so that prompts of similar length share one
compiled program whichever side the processor padded.

Axis letters: B batch, S sequence, N visual tokens of a row, A axes of a position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

BUCKET = 16  # sequence lengths are rounded up to a multiple of this: padding is computed in every layer
VISUAL_BUCKET = 64  # and numbers of visual tokens that vary, to one of this


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompt:
    """A batch, ready for the compiled program. A pytree.

    Attributes:
      input_ids: [B, S] int32, real tokens first.
      lengths: [B] int32, real tokens of each row.
      pixel_values: [images, C, height, width], or None where no row has an image.
      positions: [B, S, A] int32, rotary positions.
      next_position: [B] int32, rotary position of the first new token.
      visual_slots: [B, N] int32, where in the sequence the visual tokens stand. A row with fewer than N lists slots of
        its padding for the missing ones.
      visual_valid: [B, N] bool, False for these.
      feature_index: [B, N] int32, which of all visual features (`Visual.tokens`) goes there.
      border: [B, N] bool, True where a token shows nothing but the padding of its image: cuts take these after all
        others. None where nothing is known of that.
      images: the N are so many stretches of equal length, one per image; None where a row's images share them. Static.
      whole: each stretch is all that the tower gives for its image, in order. Static.
      relevance: the rows' questions as CLIP sees them (`models.engine.relevance.QuestionEmbeddings`), or None.
    """

    input_ids: Any
    lengths: Any
    pixel_values: Any
    positions: Any
    next_position: Any
    visual_slots: Any
    visual_valid: Any
    feature_index: Any
    border: Any = None
    images: int | None = dataclasses.field(default=1, metadata={"static": True})
    whole: bool = dataclasses.field(default=True, metadata={"static": True})
    relevance: Any = None


def pack_order(attention_mask: np.ndarray) -> np.ndarray:
    """[B, S] bool -> [B, S] indices that bring each row's real tokens to the front, in order."""
    return np.argsort(~attention_mask, axis=1, kind="stable")


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def within_context(prompt: Prompt, context: int) -> Prompt:
    """The prompt itself.

    Raises:
      ValueError: it has more tokens than the model was trained for.
    """
    if (longest := int(prompt.lengths.max())) > context:
        raise ValueError(f"a prompt has {longest} tokens, visual ones included; the model's context is {context}")
    return prompt


def make_prompt(
    input_ids: Any,
    pixel_values: Any | None,
    attention_mask: Any | None,
    *,
    image_token_id: int,
    tokens_per_image: int,
    vocab_size: int,
    bucket: int = BUCKET,
    features_of: Sequence[np.ndarray] | None = None,
    per_image: bool = False,
    border: Any | None = None,
) -> Prompt:
    """Pack, pad and check a processor's output.

    A placeholder that `attention_mask` leaves out does not enter the sequence, and neither does its visual token: what
    follows moves up, as in a prompt that never had it.

    Args:
      input_ids: [B, S] integers, image placeholders expanded (one per visual token).
      pixel_values: [images, C, height, width] of all rows in order, or None.
      attention_mask: [B, S], non-zero for real tokens; None means all are.
      image_token_id: the placeholder.
      tokens_per_image: visual tokens that the tower gives for one image.
      vocab_size: ids must be below it.
      bucket: S is rounded up to a multiple of this.
      features_of: for each image the indices of the features that it brings, where that is not all of its own in
        order (LLaVA-NeXT). N is then a multiple of `VISUAL_BUCKET`.
      per_image: give each image a stretch of the N of its own, as long as the longest. Without `features_of` it is so
        anyway.
      border: [images, tokens_per_image], non-zero for visual tokens that cuts should take after all others: those that
        show the padding of an image.

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
    if pixel_values is not None and np.ndim(pixel_values) != 4:
        raise ValueError(f"pixel_values has shape {np.shape(pixel_values)}; expected [images, channels, height, width]")

    placeholders = ids == image_token_id
    varies = features_of is not None
    if features_of is None:
        images = 0 if pixel_values is None else len(pixel_values)
        features_of = list(np.arange(images * tokens_per_image).reshape(images, tokens_per_image))
    rows = _images_of_rows(placeholders.sum(1).tolist(), features_of, tokens_per_image)
    if not mask[placeholders].all():
        rows, varies = [_entering(*row) for row in zip(rows, mask, placeholders, strict=True)], True
    counts = (placeholders & mask).sum(1)
    images = max(1, *map(len, rows))
    shared = varies and not per_image and images > 1
    if shared:
        rows = [[np.concatenate(row)] if row else [] for row in rows]
    builders = 1 if shared else images
    each = max((len(image) for row in rows for image in row), default=0)
    each = round_up(each, VISUAL_BUCKET) if varies else each

    ids = np.take_along_axis(ids, pack_order(mask), 1)
    # A row with fewer visual tokens than there is room for needs padding slots that stand for the missing ones.
    size = round_up(int((lengths + builders * each - counts).max()), bucket)
    packed = np.zeros((len(ids), size), np.int32)
    slots, features = np.zeros((2, len(ids), builders * each), np.int32)
    valid = np.zeros(slots.shape, bool)
    for row, (length, own) in enumerate(zip(lengths, rows, strict=True)):
        packed[row, :length] = ids[row, :length]
        for image, indices in enumerate(own):
            valid[row, image * each : image * each + len(indices)] = True
        features[row, valid[row]] = np.concatenate([*own, []])
        slots[row, valid[row]] = np.flatnonzero(packed[row, :length] == image_token_id)
        slots[row, ~valid[row]] = length + np.arange((~valid[row]).sum())
    if border is not None:
        border = valid & _checked_border(border, pixel_values, tokens_per_image).reshape(-1)[features]
    return Prompt(
        input_ids=packed,
        lengths=lengths.astype(np.int32),
        pixel_values=pixel_values,
        positions=np.broadcast_to(np.arange(size, dtype=np.int32)[:, None], (len(ids), size, 1)),
        next_position=lengths.astype(np.int32),
        visual_slots=slots,
        visual_valid=valid,
        feature_index=features,
        border=border,
        images=None if shared else images,
        whole=not varies,
    )


def _entering(images: Sequence[np.ndarray], mask: np.ndarray, placeholders: np.ndarray) -> list[np.ndarray]:
    """Of the features of a row's images those whose placeholders enter the sequence."""
    ends = np.cumsum([len(image) for image in images])
    enters = np.split(mask[placeholders], ends)
    return [image[keep] for image, keep in zip(images, enters[: len(images)], strict=True)]


def _checked_border(border: Any, pixel_values: Any | None, tokens_per_image: int) -> np.ndarray:
    expected = (0 if pixel_values is None else len(pixel_values), tokens_per_image)
    border = np.asarray(border).astype(bool)
    if border.shape != expected:
        raise ValueError(f"border has shape {border.shape}; expected {expected}, one entry per visual token")
    return border if border.size else np.zeros((1, 1), bool)


def _images_of_rows(counts: Sequence[int], images: Sequence[np.ndarray], usual: int) -> list[list[np.ndarray]]:
    """Deal the images out to the rows, in order, by how many placeholders each row holds; `usual` is for the message.

    Raises:
      ValueError: they do not come out even.
    """
    left, rows = list(images), []
    for count in counts:
        row: list[np.ndarray] = []
        while left and sum(map(len, row)) + len(left[0]) <= count:
            row.append(left.pop(0))
        rows.append(row)
    if left or [sum(map(len, row)) for row in rows] != list(counts):
        bring = " or ".join(str(size) for size in sorted({len(image) for image in images})) or str(usual)
        raise ValueError(
            f"input_ids holds {list(counts)} image placeholders per row, but {len(images)} images bring "
            f"{bring} visual tokens each; expand each image's placeholder with the checkpoint's processor"
        )
    return rows
