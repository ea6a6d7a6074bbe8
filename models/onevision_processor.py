"""LLaVA-OneVision's processor for images and text: transformers' own parts without torchvision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.assembled_processor import AssembledProcessor, repeated
from models.config import Fields
from models.families.llava_onevision import max_tiles
from models.families.onevision_media import tokens_of_image
from models.io.untrusted import read_json

CLASS = "LlavaOnevisionProcessor"


class OnevisionProcessor(AssembledProcessor):
    """What transformers' processor does with images and text, to the same arrays under the same names.

    Args:
      tokenizer: see `AssembledProcessor`.
      image_processor: transformers' `LlavaOnevisionImageProcessorPil`.
      chat_template: see there.
      tokens_per_tile: visual tokens of a tile.
      max_tiles: as in `LlavaOnevisionConfig`.
    """

    def __init__(
        self, tokenizer: Any, image_processor: Any, chat_template: str | None, *, tokens_per_tile: int, max_tiles: int
    ):
        super().__init__(tokenizer, image_processor, chat_template)
        self.image_token = self.token("image", "<image>")
        self.tokens_per_tile, self.max_tiles = tokens_per_tile, max_tiles

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> OnevisionProcessor:
        """From a checkpoint's folder; ConfigError, or what transformers raises, for files that cannot be used."""
        read = Fields({"vision_aspect_ratio": "anyres_max_9"} | read_json(folder / "processor_config.json", ValueError))
        tokens, most = read.whole("num_image_tokens", 1, 2**14), max_tiles(read)
        if (strategy := read.get("vision_feature_select_strategy")) not in (None, "full"):
            read.wrong("vision_feature_select_strategy", strategy, "supported is 'full'")
        read.check()
        return cls(*cls.parts(folder, **options), tokens_per_tile=tokens, max_tiles=most)

    def __call__(
        self, images: Any = None, text: Sequence[str] = (), *, padding: bool = False, return_tensors: str = "np"
    ) -> dict[str, np.ndarray]:
        """Tiles, and texts with each placeholder as often as its image has visual tokens.

        Args:
          images: of all texts in order, or None. In one list all are cut into tiles; in a list of lists, one for each
            text that has any, those that are alone in theirs.
          text: at least one, with a placeholder for each image.
          padding: to the longest.
          return_tensors: "np".

        Returns:
          `input_ids`, `attention_mask` [B, S]; with images `pixel_values`, `image_sizes` and `batch_num_images`.

        Raises:
          ValueError: there are not as many placeholders as images.
        """
        seen = {} if images is None else dict(self.image_processor(images, return_tensors=return_tensors))
        counts = self._counts(seen) if seen else []
        whole = repeated(text, self.image_token, counts, "images")
        return {**self.tokenizer(whole, padding=padding, return_tensors=return_tensors), **seen}

    def _counts(self, seen: dict[str, Any]) -> list[int]:
        """Visual tokens of each image; one that is not cut into tiles has a newline more than its tile."""
        together, patches = np.asarray(seen["batch_num_images"]), math.isqrt(self.tokens_per_tile)
        pinpoints = [(height, width) for height, width in self.image_processor.image_grid_pinpoints]
        form = {"tile": seen["pixel_values"].shape[-1], "patches": patches, "max_tiles": self.max_tiles}
        return [
            len(tokens_of_image((int(height), int(width)), pinpoints, **form)[0]) if alone else self.tokens_per_tile + 1
            for (height, width), alone in zip(seen["image_sizes"], np.repeat(together == 1, together), strict=True)
        ]
