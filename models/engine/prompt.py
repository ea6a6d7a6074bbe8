"""From a Hugging Face processor's output to the static shapes of a compiled program. Host-side, NumPy only.

Rows are packed to the left and padded at the end, up to a bucket length, so that prompts of similar length share one
compiled program whichever side the processor padded.

Axis letters: B batch, S sequence, N visual tokens of a row, A axes of a position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from models.errors import ConfigError

BUCKET = 16  # sequence lengths are multiples of this: padding is computed in every layer
VISUAL_BUCKET = 64  # and so are numbers of visual tokens that vary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompt:
    """A batch, ready for the compiled program. A pytree.

    Attributes:
      input_ids: [B, S] int32, real tokens first.
      lengths: [B] int32, real tokens of each row.
      pixel_values: what the family's `visual` takes, a pytree: [images, C, height, width] for LLaVA; or what it gave
        for that (`models.engine.embed.see`); None where no row has an image.
      positions: [B, S, A] int32, rotary positions.
      next_position: [B] int32, rotary position of the first new token.
      visual_slots: [B, N] int32, slots of the visual tokens; padding slots stand for those that a row lacks.
      visual_valid: [B, N] bool, False for these.
      feature_index: [B, N] int32, which of all visual features (`Visual.tokens`) goes there.
      border: [B, N] bool, True where a token shows only the padding of its image: cuts keep these after all others.
        None where that is not known.
      images: how many stretches of equal length the N are, one per image; None where images share them. Static.
      whole: whether each stretch is all that the tower gives for its image, in order. Static.
      grid: frames, rows and columns of every image or video, where all are alike; else None. Static.
      relevance: the rows' questions (`models.engine.relevance.QuestionEmbeddings`), or None.
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
    grid: tuple[int, int, int] | None = dataclasses.field(default=None, metadata={"static": True})
    relevance: Any = None


def pack_order(attention_mask: np.ndarray) -> np.ndarray:
    """[B, S] bool -> [B, S] indices that bring each row's real tokens to the front, in order."""
    return np.argsort(~attention_mask, axis=1, kind="stable")


class Media(Protocol):
    """An image or a video of a prompt."""

    @property
    def tokens(self) -> int:
        """How many visual tokens, and so placeholders, it has."""


MediaT = TypeVar("MediaT", bound=Media)


def in_order(ids: np.ndarray, media: Mapping[int, list[MediaT]]) -> list[MediaT]:
    """Images and videos in the order in which their placeholders stand; those without any come last."""
    left, found = {token: list(those) for token, those in media.items()}, list[MediaT]()
    placeholders, at = ids[np.isin(ids, list(media))], 0
    while at < len(placeholders) and left[int(placeholders[at])]:
        found.append(left[int(placeholders[at])].pop(0))
        at += found[-1].tokens
    return [*found, *(one for those in left.values() for one in those)]


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def within_context(prompt: Prompt, context: int) -> Prompt:
    """The prompt itself; ValueError if it has more tokens than the model was trained for."""
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
    grid: tuple[int, int, int] | None = None,
) -> Prompt:
    """Pack, pad and check a processor's output.

    A placeholder that `attention_mask` leaves out does not enter the sequence, and neither does its visual token.

    Args:
      input_ids: [B, S] integers, image placeholders expanded (one per visual token).
      pixel_values: [images, C, height, width] of all rows in order, or None.
      attention_mask: [B, S], non-zero for real tokens; None means all are.
      image_token_id: the placeholder.
      tokens_per_image: visual tokens that the tower gives for one image.
      vocab_size: ids must be below it.
      bucket: S is rounded up to a multiple of this.
      features_of: for each image the indices of its features, where these are not all of its own in order
        (LLaVA-NeXT). N is then a multiple of `VISUAL_BUCKET`.
      per_image: give each image a stretch of the N, as long as the longest; always so without `features_of`.
      border: [images, tokens_per_image], non-zero for visual tokens that show only the padding of an image.
      grid: frames, rows and columns of the visual tokens of each image, where all are alike.

    Raises:
      ValueError: shapes do not fit each other, a row is empty, or the placeholders are not as many as the features.
      ConfigError: ids outside the vocabulary, as from a tokenizer that does not belong to the model.
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
        raise ConfigError(
            f"input_ids holds ids from {real.min()} to {real.max()}, but the model's vocabulary ends at "
            f"{vocab_size - 1}; expected the tokenizer that belongs to the model"
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
        grid = None
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
        grid=grid,
    )


def _entering(images: Sequence[np.ndarray], mask: np.ndarray, placeholders: np.ndarray) -> list[np.ndarray]:
    """The features of a row's images whose placeholders enter the sequence."""
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
    """Assign images to rows, in order, by the placeholders of each row; `usual` is for the message.

    Raises:
      ValueError: placeholders and features are not as many.
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
