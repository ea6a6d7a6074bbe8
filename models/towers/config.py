"""Constants of a CLIP vision tower, from transformers' config."""

from __future__ import annotations

import dataclasses
from typing import Any

from models.config import ConfigError, activation_problems


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
      ConfigError: another kind of tower, or an unknown activation.
    """
    if hf.model_type != "clip_vision_model":
        raise ConfigError(f"vision_config.model_type is {hf.model_type!r}; only 'clip_vision_model' is supported")
    if problems := activation_problems(hf.hidden_act, "vision_config.hidden_act"):
        raise ConfigError(*problems)
    return VisionConfig(
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_channels=hf.num_channels,
        image_size=hf.image_size,
        patch_size=hf.patch_size,
        activation=hf.hidden_act,
        layer_norm_eps=hf.layer_norm_eps,
    )
