"""Images of any resolution for LLaVA-NeXT and LLaVA-OneVision: index arithmetic on the host, no pixels and no weights.

The tower sees an image whole, as one tile, and as a grid of tiles at the resolution that fits best. The decoder gets
the whole image's tokens and then the grid's, row by row, without rows or columns of padding, and with one image-newline
embedding at the end of every row::

    tiles of an image    0: whole    1 2: the grid, padded above and below
                                     3 4

The layout follows from the image's size alone. So the model runs the tower over all tiles, appends the newline
embedding as one more row, and gathers the rows of `features_of_image`, in transformers' order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.engine.visual import View

Size = tuple[int, int]  # height, width


def best_resolution(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The first of the pinpoints that keeps most of an image's pixels and, among equals, wastes least.

    Examples:
      >>> best_resolution((480, 640), [(336, 672), (672, 336), (672, 672)])
      (672, 672)
    """
    height, width = size

    def fit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[1] / width, candidate[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - candidate[0] * candidate[1]

    return max(pinpoints, key=fit)


def num_tiles(size: Size, pinpoints: Sequence[Size], tile: int) -> int:
    """Tiles of one image, the whole one included. `tile` is a tile's side in pixels, as for `features_of_image`."""
    height, width = best_resolution(size, pinpoints)
    return 1 + (height // tile) * (width // tile)


def most_tiles(pinpoints: Sequence[Size], tile: int) -> int:
    """Tiles of the image that has most."""
    return 1 + max((height // tile) * (width // tile) for height, width in pinpoints)


def padding(size: Size, grid: Size) -> Size:
    """Rows above (and as many below) and columns left (and right) of a grid that show no image.

    Examples:
      >>> padding((300, 600), (48, 48))
      (12, 0)
    """
    height, width = size
    rows, columns = grid
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def unpadded_grid(size: Size, pinpoints: Sequence[Size], *, tile: int, patches: int, first: int) -> np.ndarray:
    """[rows, columns] of the features of an image's grid that show the image; arguments as for `features_of_image`."""
    height, width = best_resolution(size, pinpoints)
    down, across = height // tile, width // tile
    of_tile = first + patches * patches * np.arange(1, 1 + down * across).reshape(down, 1, across, 1)
    within = np.arange(patches * patches).reshape(patches, 1, patches)
    grid = (of_tile + within).reshape(down * patches, across * patches)  # from [down, patches, across, patches]
    above, left = padding(size, (down * patches, across * patches))
    return grid[above : grid.shape[0] - above, left : grid.shape[1] - left]


def resized(grid: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A grid brought to another size as PyTorch does it with `interpolate(mode="bilinear")`, without antialiasing.

    Args:
      grid: [rows, columns] integers.
      size: rows and columns to bring it to.

    Returns:
      Of every new place, the four entries of `grid` that it lies between, [*size, 4] int32, and how much each counts,
      [*size, 4] float32, which add up to 1.
    """
    (above, below, down), (left, right, across) = map(_between, grid.shape, size)
    entries = [grid[np.ix_(row, column)] for row in (above, below) for column in (left, right)]
    weights = [np.outer(row, column) for row in (1 - down, down) for column in (1 - across, across)]
    return np.stack(entries, axis=-1).astype(np.int32), np.stack(weights, axis=-1)


def _between(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two of `before` places that each of `after` lies between, and the share of the second, in float32."""
    half, step = np.float32(0.5), np.float32(before / max(after, 1))
    at = np.maximum((np.arange(after, dtype=np.float32) + half) * step - half, 0)
    low = np.minimum(at.astype(np.int32), before - 1)
    share = np.clip(at - low.astype(np.float32), 0, 1)
    return low, np.where(share > 0, np.minimum(low + 1, before - 1), low), share  # 0 times a NaN would be one


def features_of_image(
    size: Size, pinpoints: Sequence[Size], *, tile: int, patches: int, first: int, newline: int
) -> np.ndarray:
    """Which features one image's visual tokens are.

    Args:
      size: of the image in pixels, before it was resized.
      pinpoints: resolutions that the checkpoint's grids may have, multiples of `tile`.
      tile: side of a tile in pixels.
      patches: patches along a tile's side.
      first: row of the image's first feature among those of all tiles.
      newline: row of the image-newline embedding.

    Returns:
      [N] int32 rows, in the order in which the decoder gets them.

    Examples:
      >>> print(features_of_image((9, 5), [(10, 5)], tile=5, patches=2, first=100, newline=-1))
      [100 101 102 103 104 105  -1 106 107  -1 108 109  -1 110 111  -1]
    """
    whole = first + np.arange(patches * patches)
    grid = unpadded_grid(size, pinpoints, tile=tile, patches=patches, first=first)
    lines = np.concatenate([grid, np.full((len(grid), 1), newline)], axis=1)
    return np.concatenate([whole, lines.reshape(-1)]).astype(np.int32)


def views_of_image(
    tiles: np.ndarray, tokens: np.ndarray, size: Size, pinpoints: Sequence[Size], *, patch_size: int
) -> list[View]:
    """An image whole, as one tile, and its grid of tiles put together, without padding; both as far as patches go.

    Args:
      tiles: [T, C, height, width], the whole image first.
      tokens: [N], which visual tokens of a prompt are the image's, and -1 in place of newlines.
      size: as for `features_of_image`.
      pinpoints: as for `features_of_image`.
      patch_size: side of a patch in pixels.
    """
    tile = tiles.shape[-1]
    patches, (height, width) = tile // patch_size, best_resolution(size, pinpoints)
    down, across, side = height // tile, width // tile, patches * patch_size
    seen = tiles[: 1 + down * across, :, :side, :side]
    grid = seen[1:].reshape(down, across, -1, side, side).transpose(2, 0, 3, 1, 4)
    above, left = (patch_size * part for part in padding(size, (down * patches, across * patches)))
    grid = grid.reshape(-1, down * side, across * side)[:, above : down * side - above, left : across * side - left]
    whole, lines = np.split(tokens, [patches**2])
    lines = lines.reshape((lines < 0).sum(), -1)
    return [View(seen[0], whole.reshape(patches, patches)), View(grid, lines[:, :-1])]


def sizes_of(pixel_values: Any, image_sizes: Any) -> list[Size]:
    """The images' sizes; ValueError where these are not sizes, one for each of [images, T, C, height, width]."""
    if image_sizes is None or np.ndim(pixel_values) != 5 or np.shape(image_sizes) != (len(pixel_values), 2):
        raise ValueError(
            f"pixel_values has shape {np.shape(pixel_values)} and image_sizes {np.shape(image_sizes)}; expected "
            "[images, tiles, channels, height, width] and [images, 2], as the checkpoint's processor gives them"
        )
    sizes = [(int(height), int(width)) for height, width in np.asarray(image_sizes)]
    if any(length < 1 for size in sizes for length in size):
        raise ValueError(f"image_sizes is {sizes}; expected heights and widths in pixels")
    return sizes


def check_tiles(pixel_values: np.ndarray, tiles: Sequence[int]) -> None:
    """Raise ValueError where images have more tiles than `pixel_values` [images, T, ...] holds of each."""
    if max(tiles, default=0) > pixel_values.shape[1]:
        raise ValueError(
            f"pixel_values holds {pixel_values.shape[1]} tiles per image; images of these sizes have {list(tiles)}"
        )


def lay_out(
    pixel_values: Any, image_sizes: Any, *, pinpoints: Sequence[Size], tile: int, patch_size: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """All tiles of all images in one stack, and the features of that stack that belong to each image.

    The stack has room for the largest grid of every image, so that its shape depends on the number of images alone;
    the rest is zero.

    Args:
      pixel_values: [images, T, C, height, width], each image's tiles first and padding after them.
      image_sizes: [images, 2], height and width before resizing.
      pinpoints: resolutions that the checkpoint's grids may have.
      tile: side of a tile in pixels.
      patch_size: side of a patch in pixels.

    Returns:
      [tiles, C, height, width], and per image its rows, the newline being the last row of all.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    sizes, pixels = sizes_of(pixel_values, image_sizes), np.asarray(pixel_values)
    tiles = [num_tiles(size, pinpoints, tile) for size in sizes]
    check_tiles(pixels, tiles)
    stack = np.zeros((len(sizes) * most_tiles(pinpoints, tile), *pixels.shape[2:]), pixels.dtype)
    patches = tile // patch_size
    rows, first = [], 0
    for image, size, count in zip(pixels, sizes, tiles, strict=True):
        stack[first : first + count] = image[:count]
        newline = len(stack) * patches**2
        of_tile = first * patches**2
        rows.append(features_of_image(size, pinpoints, tile=tile, patches=patches, first=of_tile, newline=newline))
        first += count
    return stack, rows
