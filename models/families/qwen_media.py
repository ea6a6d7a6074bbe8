"""Images and videos of a batch for the Qwen-VL families: their order, their layout by windows, their positions. NumPy.

Axis letters: B batch, S sequence, F frames, W windows, U units of a window, P patches of a unit.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from models.engine.prompt import Prompt, round_up
from models.engine.visual import View
from models.nn.qwen_vision import Frames, QwenTowerConfig

UNIT_BUCKET = 64  # room for the units of a frame is a multiple of this, in whole windows


@dataclasses.dataclass(frozen=True)
class Media:
    """An image or a video.

    Attributes:
      patches: [frames * rows * columns of patches, numbers of a patch], as the processor gives them.
      grid: frames, rows and columns of units.
      seconds: between two frames in positions; 1 for an image.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    seconds: float

    @property
    def tokens(self) -> int:
        """Visual tokens."""
        return int(np.prod(self.grid))

    def positions(self) -> np.ndarray:
        """[tokens, 3] int32: time, row and column from 0."""
        frames, rows, columns = np.indices(self.grid, dtype=np.int32).reshape(3, -1)
        return np.stack([(frames * np.float32(self.seconds)).astype(np.int32), rows, columns], axis=-1)


def views_of(media: list[Media], config: QwenTowerConfig) -> list[View]:
    """All frames; of those that are one in time, the first is shown."""
    side, size, found, first = config.merge_size, config.patch_size, list[View](), 0
    for one in media:
        frames, rows, columns = one.grid
        shape = (frames, rows, columns, side, side, config.num_channels, config.temporal_patch_size, size, size)
        patches = one.patches.reshape(shape)[..., 0, :, :].transpose(0, 5, 1, 3, 6, 2, 4, 7)
        pixels = patches.reshape(frames, config.num_channels, rows * side * size, columns * side * size)
        tokens = first + np.arange(one.tokens).reshape(one.grid)
        found += [View(*both) for both in zip(pixels, tokens, strict=True)]
        first += one.tokens
    return found


def lay_out(media: list[Media], config: QwenTowerConfig) -> tuple[Frames | None, list[np.ndarray]]:
    """All frames by windows, and for each image or video where its visual tokens stand among all units."""
    if not media:
        return None, []
    side, patches_of_unit = config.window_units, config.merge_size**2
    slots = []
    for one in media:
        _, rows, columns = one.grid
        row, column = np.indices((rows, columns), dtype=np.int32).reshape(2, -1)
        window = row // side * -(-columns // side) + column // side
        slots.append((window * side**2 + row % side * side + column % side, row, column))
    windows = max(int(slot.max()) // side**2 + 1 for slot, _, _ in slots)
    windows = round_up(windows, max(1, UNIT_BUCKET // side**2))
    count, units = sum(one.grid[0] for one in media), windows * side**2
    patches = np.zeros((count, units, patches_of_unit, config.patch_width), np.float32)
    inside, places = np.zeros((count, units), bool), np.zeros((count, units, 2), np.int32)
    features_of, first = list[np.ndarray](), 0
    for one, (slot, row, column) in zip(media, slots, strict=True):
        frames = np.arange(first, first + one.grid[0])
        patches[frames[:, None], slot] = one.patches.reshape(len(frames), len(slot), patches_of_unit, -1)
        inside[frames[:, None], slot] = True
        places[frames[:, None], slot] = np.stack([row, column], axis=-1)
        features_of.append((frames[:, None] * units + slot).reshape(-1))
        first += len(frames)
    shape = (count, windows, side**2)
    frames_by_windows = Frames(
        patches.reshape(*shape, *patches.shape[2:]), inside.reshape(shape), places.reshape(*shape, 2)
    )
    return frames_by_windows, features_of


def rotary_positions(prompt: Prompt, media: list[Media], placeholder: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions [B, S, 3] int32 of a packed batch (M-RoPE), and of the first new token [B].

    A word stands one further than what is before it, on all axes; behind an image or video, as far as its longer side.
    New tokens go on behind the largest position, which of a long video is its last frame's.
    """
    positions = np.zeros((*prompt.input_ids.shape, 3), np.int32)
    following, left = np.zeros(len(positions), np.int32), list(media)
    for row, (ids, length) in enumerate(zip(prompt.input_ids, prompt.lengths, strict=True)):
        at = now = 0
        while at < length:
            if ids[at] == placeholder:
                one = left.pop(0)
                positions[row, at : at + one.tokens] = now + one.positions()
                at, now = at + one.tokens, now + max(one.grid[1:])
            else:
                positions[row, at] = now
                at, now = at + 1, now + 1
        following[row] = positions[row, :length].max() + 1
    return positions, following
