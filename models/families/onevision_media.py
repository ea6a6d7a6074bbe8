"""Images and videos of a batch for LLaVA-OneVision: tiles, what visual tokens are made of, and where these lie. NumPy.

Axis letters: T tiles, N visual tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from models.engine.prompt import VISUAL_BUCKET, round_up
from models.engine.visual import View
from models.families import anyres

TILE_BUCKET = 4  # tiles of a batch are a multiple of this
_SHRUNK_FROM = 1.1  # how much longer than `max_tiles` allow a grid's side must be to be made smaller
Mix = tuple[np.ndarray, np.ndarray]  # features and weights of visual tokens, [N, 4] each, as in `Tiles`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of images and frames of videos, and what visual tokens are made of. A pytree.

    Attributes:
      pixels: [T, C, height, width].
      features: [N, 4] int32 rows among the features of all tiles, the newline being the last row of all.
      weights: [N, 4] float32, how much each counts.
    """

    pixels: Any
    features: Any
    weights: Any


@dataclasses.dataclass(frozen=True)
class Media:
    """An image or a video.

    Attributes:
      tiles: [T, C, height, width].
      mix: of its visual tokens, from the features of its own tiles; -1 is the newline.
      size: of an image with a grid of tiles, before it was resized; else None.
    """

    tiles: np.ndarray
    mix: Mix
    size: anyres.Size | None = None

    @property
    def tokens(self) -> int:
        """Visual tokens."""
        return len(self.mix[0])


def _joined(*parts: Mix) -> Mix:
    features, weights = (np.concatenate(those) for those in zip(*parts, strict=True))
    return features, weights


def _flat(mix: Mix) -> Mix:
    return mix[0].reshape(-1, 4), mix[1].reshape(-1, 4)


def _as_they_are(features: np.ndarray) -> Mix:
    """Tokens that are one feature each."""
    return _flat(anyres.resized(features.reshape(1, -1), (1, features.size)))


_NEWLINE = _as_they_are(np.array(-1))


def tokens_of_image(
    size: anyres.Size, pinpoints: Sequence[anyres.Size], *, tile: int, patches: int, max_tiles: int
) -> Mix:
    """What the visual tokens of an image with tiles are: the whole image, then its grid, a newline behind each row.

    Arguments are those of `anyres.features_of_image`; `max_tiles` is of `LlavaOnevisionConfig`.
    """
    grid = anyres.unpadded_grid(size, pinpoints, tile=tile, patches=patches, first=0)
    rows, columns = grid.shape
    ratio = math.sqrt(rows * columns / (max_tiles * patches**2))
    if ratio > _SHRUNK_FROM:
        rows, columns = int(rows // ratio), int(columns // ratio)
    features, weights = anyres.resized(grid, (rows, columns))
    lines = [_joined(line, _NEWLINE) for line in zip(features, weights, strict=True)]
    return _joined(_as_they_are(np.arange(patches**2)), *lines)


def tokens_of_tile(patches: int) -> Mix:
    """What the visual tokens of an image without a grid are: its only tile, and one newline at the end."""
    return _joined(_as_they_are(np.arange(patches**2)), _NEWLINE)


def tokens_of_video(frames: int, patches: int) -> Mix:
    """What a video's visual tokens are: each frame's, half as many along each side, and one newline at the end."""
    frame, half = np.arange(patches**2).reshape(patches, patches), -(-patches // 2)
    features, weights = _flat(anyres.resized(frame, (half, half)))
    return _joined(*((features + number * patches**2, weights) for number in range(frames)), _NEWLINE)


def lay_out(media: list[Media], patches: int) -> tuple[Tiles | None, list[np.ndarray]]:
    """All tiles in one stack, and for each image or video which of all visual tokens are its own, in order.

    Numbers of tiles and of tokens are rounded up, so that images of any shape share few compiled programs.
    """
    if not media:
        return None, []
    count, total = sum(len(one.tiles) for one in media), sum(one.tokens for one in media)
    pixels = np.zeros((round_up(count, TILE_BUCKET), *media[0].tiles.shape[1:]), np.float32)
    shape = round_up(total, VISUAL_BUCKET), 4
    features, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    features_of, tile, token = list[np.ndarray](), 0, 0
    for one in media:
        here = slice(token, token + one.tokens)
        pixels[tile : tile + len(one.tiles)] = one.tiles
        own, weights[here] = one.mix
        features[here] = np.where(own < 0, len(pixels) * patches, tile * patches + own)
        features_of.append(np.arange(here.start, here.stop))
        tile, token = tile + len(one.tiles), here.stop
    return Tiles(pixels, features, weights), features_of


def views_of(media: list[Media], pinpoints: Sequence[anyres.Size], *, patch_size: int) -> list[View]:
    """Of each image its `anyres.views_of_image`, or its only tile as of a video's frames, as far as patches go."""
    found, first = list[View](), 0
    for one in media:
        tokens = np.where(one.mix[0][:, 0] < 0, -1, first + np.arange(one.tokens))
        if one.size is not None:
            found += anyres.views_of_image(one.tiles, tokens, one.size, pinpoints, patch_size=patch_size)
        else:
            seen, side = one.tiles.shape[-1] // patch_size * patch_size, math.isqrt(one.tokens // len(one.tiles))
            frames = tokens[:-1].reshape(-1, side, side)
            found += [View(*both) for both in zip(one.tiles[:, :, :seen, :seen], frames, strict=True)]
        first += one.tokens
    return found
