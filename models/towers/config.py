"""Constants of CLIP's towers, from transformers' configs."""

from __future__ import annotations

import dataclasses
from typing import Any

from models.config import ConfigError, activation_problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What both towers have. Widths in channels."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    activation: str
    layer_norm_eps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(EncoderConfig):
    """A CLIP vision tower. Sizes in pixels."""

    num_channels: int
    image_size: int
    patch_size: int

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
        **_encoder(hf), num_channels=hf.num_channels, image_size=hf.image_size, patch_size=hf.patch_size
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(EncoderConfig):
    """A CLIP text tower.

    Attributes:
      vocab_size: ids are below it.
      context: the most tokens that it takes.
      eos_token_id: whose first place in a text stands for the text; 2 is the largest id's place, see `end_of_text`.
    """

    vocab_size: int
    context: int
    eos_token_id: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A CLIP.

    Attributes:
      text: its text tower.
      vision: its vision tower.
      projection_dim: of the space in which texts and images meet.
    """

    text: ClipTextConfig
    vision: VisionConfig
    projection_dim: int


def clip_config(hf: Any) -> ClipConfig:
    """`ClipConfig` from a transformers config of that name.

    Raises:
      ConfigError: another kind of model, an unknown activation, or a text that ends in more ways than one.
    """
    if hf.model_type != "clip":
        raise ConfigError(f"config.json has model_type {hf.model_type!r}; relevance is told by a 'clip'")
    text = hf.text_config
    problems = activation_problems(text.hidden_act, "text_config.hidden_act")
    if not isinstance(text.eos_token_id, int):
        problems.append(f"text_config.eos_token_id is {text.eos_token_id!r}; expected one id")
    if problems:
        raise ConfigError(*problems)
    return ClipConfig(
        text=ClipTextConfig(
            **_encoder(text),
            vocab_size=text.vocab_size,
            context=text.max_position_embeddings,
            eos_token_id=text.eos_token_id,
        ),
        vision=vision_config(hf.vision_config),
        projection_dim=hf.projection_dim,
    )


def _encoder(hf: Any) -> dict[str, Any]:
    return {
        "hidden_size": hf.hidden_size,
        "intermediate_size": hf.intermediate_size,
        "num_layers": hf.num_hidden_layers,
        "num_heads": hf.num_attention_heads,
        "activation": hf.hidden_act,
        "layer_norm_eps": hf.layer_norm_eps,
    }
