"""Qwen2.5-VL's and Qwen3-VL's processor for images and text: transformers' own parts, put together without torchvision.

transformers' class cannot be made without its video processor, which asks for torchvision even where there is no video.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.io.hub import transformers
from models.io.untrusted import read_json

CLASSES = {"Qwen2_5_VLProcessor", "Qwen3VLProcessor"}  # which do the same with images


class QwenProcessor:
    """What transformers' processor does with images and text, to the same arrays under the same names.

    Args:
      tokenizer: of the checkpoint.
      image_processor: transformers' `Qwen2VLImageProcessorPil`.
      chat_template: Jinja's, or None.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, chat_template: str | None):
        self.tokenizer, self.image_processor, self.chat_template = tokenizer, image_processor, chat_template
        self.image_token = getattr(tokenizer, "image_token", None) or "<|image_pad|>"

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> QwenProcessor:
        """From a checkpoint's folder; what transformers raises for files that cannot be read."""
        package, old = transformers(), folder / "chat_template.json"
        tokenizer = package.AutoTokenizer.from_pretrained(folder, **options)
        images = package.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        template = tokenizer.chat_template
        if template is None and old.exists():
            template = read_json(old, ValueError).get("chat_template")
        return cls(tokenizer, images, template)

    def apply_chat_template(self, turns: Sequence[Any], *, add_generation_prompt: bool = False) -> str:
        """A conversation as text, a placeholder for each image."""
        text: str = self.tokenizer.apply_chat_template(
            turns, chat_template=self.chat_template, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return text

    def __call__(
        self, images: Any = None, text: Sequence[str] = (), *, padding: bool = False, return_tensors: str = "np"
    ) -> dict[str, np.ndarray]:
        """Pixels by patches, and texts with each placeholder as often as its image has visual tokens.

        Args:
          images: of all texts in order, or None.
          text: at least one, with a placeholder for each image.
          padding: to the longest.
          return_tensors: "np".

        Returns:
          `input_ids`, `attention_mask`, `mm_token_type_ids` [B, S]; with images `pixel_values` and `image_grid_thw`.

        Raises:
          ValueError: there are not as many placeholders as images.
        """
        seen = {} if images is None else dict(self.image_processor(images, return_tensors=return_tensors))
        merged = self.image_processor.merge_size**2
        counts = [int(grid.prod()) // merged for grid in seen.get("image_grid_thw", ())]
        pieces = [one.split(self.image_token) for one in text]
        if (found := sum(map(len, pieces)) - len(pieces)) != len(counts):
            raise ValueError(f"the text holds {found} times {self.image_token} for {len(counts)} images")
        left = iter(counts)
        whole = [first + "".join(self.image_token * next(left) + rest for rest in more) for first, *more in pieces]
        out = dict(self.tokenizer(whole, padding=padding, return_tensors=return_tensors))
        placeholder = self.tokenizer.convert_tokens_to_ids(self.image_token)
        return {**out, "mm_token_type_ids": (out["input_ids"] == placeholder).astype(np.int64), **seen}
