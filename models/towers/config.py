"""Constants of a CLIP vision tower, from transformers' config."""

from __future__ import annotations

import dataclasses
from typing import Any

from models.config import MAX_LAYERS, ConfigError, Fields

MAX_PATCHES = 2**14  # of an image; the largest published tower has 5,329


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision tower. Sizes in pixels, widths in channels."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    activation: str
    layer_norm_eps: float

    @property
    def num_patches(self) -> int:
        """Visual tokens of one image, class token not counted."""
        return (self.image_size // self.patch_size) ** 2


def vision_config(hf: Any) -> VisionConfig:
    """`VisionConfig` from a transformers `CLIPVisionConfig`.

    Raises:
      ConfigError: another kind of tower, fields of another type or out of range.
    """
    if hf.model_type != "clip_vision_model":
        raise ConfigError(f"vision_config.model_type is {hf.model_type!r}; only 'clip_vision_model' is supported")
    read = Fields(hf, "vision_config.")
    config = VisionConfig(
        hidden_size=read.whole("hidden_size", 1, 2**15),
        intermediate_size=read.whole("intermediate_size", 1, 2**18),
        num_layers=read.whole("num_hidden_layers", 1, MAX_LAYERS),
        num_heads=read.whole("num_attention_heads", 1, 2**10),
        num_channels=read.whole("num_channels", 1, 16),
        image_size=read.whole("image_size", 1, 2**13),
        patch_size=read.whole("patch_size", 1, 2**10),
        activation=read.activation("hidden_act"),
        layer_norm_eps=read.number("layer_norm_eps", 0, 1),
    )
    if not read.problems and config.hidden_size % config.num_heads:
        read.wrong("num_attention_heads", config.num_heads, f"expected a divisor of hidden_size, {config.hidden_size}")
    if not read.problems and not 1 <= config.num_patches <= MAX_PATCHES:
        read.wrong("patch_size", config.patch_size, f"{config.num_patches} patches; expected 1 to {MAX_PATCHES}")
    read.check()
    return config
