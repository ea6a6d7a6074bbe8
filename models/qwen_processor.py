"""The processor of Qwen2.5-VL and Qwen3-VL for images, videos and text: transformers' own parts without torchvision.

A frame is made ready as an image is, by Pillow's resizing, and frames are then joined in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.assembled_processor import AssembledProcessor, repeated
from models.io.untrusted import read_json

WITH_VIDEO = "Qwen2_5_VLProcessor"
CLASSES = {WITH_VIDEO, "Qwen3VLProcessor"}  # which do the same with images; the second writes times into the text
VIDEO_FILE = "video_preprocessor_config.json"
_SHARED = (
    *("size", "min_pixels", "max_pixels", "resample", "patch_size", "temporal_patch_size", "merge_size"),
    *("image_mean", "image_std", "rescale_factor", "do_resize", "do_rescale", "do_normalize", "do_convert_rgb"),
)


class QwenProcessor(AssembledProcessor):
    """What transformers' processor does with images, videos and text, to the same arrays under the same names.

    Args:
      tokenizer: see `AssembledProcessor`.
      image_processor: transformers' `Qwen2VLImageProcessorPil`.
      chat_template: see there.
      video_processor: the same for frames; None takes no videos.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, chat_template: str | None, video_processor: Any = None):
        super().__init__(tokenizer, image_processor, chat_template)
        self.video_processor = video_processor
        self.image_token = self.token("image", "<|image_pad|>")
        self.video_token = self.token("video", "<|video_pad|>")

    @classmethod
    def from_pretrained(cls, folder: Path, *, videos: bool = True, **options: Any) -> QwenProcessor:
        """From a folder, with videos as Qwen2.5-VL has them or without; what transformers raises for bad files."""
        tokenizer, images, template = cls.parts(folder, **options)
        frames = images if videos else None  # by the same file, as in published checkpoints
        if videos and (folder / VIDEO_FILE).exists():
            own = read_json(folder / VIDEO_FILE, ValueError)
            frames = type(images)(**{name: own[name] for name in _SHARED if own.get(name) is not None})
        return cls(tokenizer, images, template, frames)

    def __call__(
        self,
        images: Any = None,
        text: Sequence[str] = (),
        *,
        videos: Sequence[Sequence[Any]] = (),
        rates: Sequence[float | None] = (),
        padding: bool = False,
        return_tensors: str = "np",
    ) -> dict[str, np.ndarray]:
        """Pixels by patches, and texts with each placeholder as often as its image or video has visual tokens.

        Args:
          images: of all texts in order, or None.
          text: at least one, with a placeholder for each image and video.
          videos: of all texts in order, each the frames of one size that are seen.
          rates: for each video how many of these are a second; None counts as 2, as Qwen samples.
          padding: to the longest.
          return_tensors: "np".

        Returns:
          `input_ids`, `attention_mask`, `mm_token_type_ids` [B, S]; with images `pixel_values` and `image_grid_thw`,
          with videos `pixel_values_videos`, `video_grid_thw` and `second_per_grid_ts`.

        Raises:
          ValueError: there are not as many placeholders as images or videos.
        """
        seen = {} if images is None else dict(self.image_processor(images, return_tensors=return_tensors))
        if videos:
            made = [self._video(frames) for frames in videos]
            seen["pixel_values_videos"] = np.concatenate([patches for patches, _ in made])
            seen["video_grid_thw"] = np.array([grid for _, grid in made])
            together = self.video_processor.temporal_patch_size
            seen["second_per_grid_ts"] = np.array([together / (rate or 2.0) for rate in rates], np.float32)
        merged = self.image_processor.merge_size**2
        whole, kinds = list(text), {"image": self.image_token, "video": self.video_token}
        for kind, placeholder in kinds.items():
            counts = [int(np.prod(grid)) // merged for grid in seen.get(f"{kind}_grid_thw", ())]
            whole = repeated(whole, placeholder, counts, f"{kind}s")
        out = dict(self.tokenizer(whole, padding=padding, return_tensors=return_tensors))
        types = np.zeros_like(out["input_ids"])
        for number, (kind, placeholder) in enumerate(kinds.items(), 1):
            if f"{kind}_grid_thw" in seen:
                types[out["input_ids"] == self.tokenizer.convert_tokens_to_ids(placeholder)] = number
        return {**out, "mm_token_type_ids": types, **seen}

    def _video(self, frames: Sequence[Any]) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Patches [T * rows * columns, C * t * p * p] of frames, and T, rows and columns; the last frame fills up."""
        together = self.video_processor.temporal_patch_size
        frames = [*frames, *[frames[-1]] * (-len(frames) % together)]
        out = self.video_processor(frames, return_tensors="np")
        (_, rows, columns), count = out["image_grid_thw"][0].tolist(), len(frames) // together
        # An image is its own next frame there: of each frame one copy is taken.
        shape = (count, together, rows * columns, -1, together, self.video_processor.patch_size**2)
        patches = out["pixel_values"].reshape(shape)
        joined = np.moveaxis(patches[..., 0, :], 1, 3)  # [T, rows * columns, C, t, p * p]
        return joined.reshape(count * rows * columns, -1), (count, rows, columns)
