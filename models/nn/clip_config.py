"""Constants of CLIP's towers, from transformers' configs."""

from __future__ import annotations

import dataclasses
from typing import Any

from models.config import MAX_LAYERS, Fields
from models.errors import ConfigError
from models.nn.linear import ACTIVATIONS

MAX_PATCHES = 2**14  # of an image; the largest published tower has 5,329


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

    @property
    def entry(self) -> tuple[int, int]:
        """Numbers of one entry of `pixel_values`, an image or tile, and what the tower makes of it: tokens."""
        return self.num_channels * self.image_size**2, self.num_patches + 1


def vision_config(hf: Any) -> VisionConfig:
    """`VisionConfig` from a transformers `CLIPVisionConfig`; ConfigError for another tower or wrong fields."""
    if hf.model_type != "clip_vision_model":
        raise ConfigError(f"vision_config.model_type is {hf.model_type!r}; only 'clip_vision_model' is supported")
    return VisionConfig(**vision_fields(hf))


def vision_fields(hf: Any) -> dict[str, Any]:
    """The fields of a `VisionConfig`; ConfigError for wrong ones."""
    read = Fields(hf, "vision_config.")
    fields = {
        **_encoder(read),
        "num_channels": read.whole("num_channels", 1, 16),
        "image_size": read.whole("image_size", 1, 2**13),
        "patch_size": read.whole("patch_size", 1, 2**10),
    }
    patches = (fields["image_size"] // fields["patch_size"]) ** 2
    if not read.problems and not 1 <= patches <= MAX_PATCHES:
        read.wrong("patch_size", fields["patch_size"], f"{patches} patches; expected 1 to {MAX_PATCHES}")
    read.check()
    return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(EncoderConfig):
    """A CLIP text tower; `context` is the most tokens that it takes, `eos_token_id` is read by `end_of_text`."""

    vocab_size: int
    context: int
    eos_token_id: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A CLIP; `projection_dim` is the width of the space that texts and images share."""

    text: ClipTextConfig
    vision: VisionConfig
    projection_dim: int


def clip_config(hf: Any) -> ClipConfig:
    """`ClipConfig` from a transformers config of that name; ConfigError for another model or wrong fields."""
    if hf.model_type != "clip":
        raise ConfigError(f"config.json has model_type {hf.model_type!r}; relevance needs a 'clip'")
    vision, text, whole = vision_config(hf.vision_config), Fields(hf.text_config, "text_config."), Fields(hf)
    config = ClipConfig(
        text=ClipTextConfig(
            **_encoder(text),
            vocab_size=text.whole("vocab_size", 1, 2**24),
            context=text.whole("max_position_embeddings", 1, 2**16),
            eos_token_id=text.whole("eos_token_id", 0, 2**24),
        ),
        vision=vision,
        projection_dim=whole.whole("projection_dim", 1, 2**15),
    )
    text.problems += whole.problems
    text.check()
    return config


def _encoder(read: Fields) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "hidden_size": read.whole("hidden_size", 1, 2**15),
        "intermediate_size": read.whole("intermediate_size", 1, 2**18),
        "num_layers": read.whole("num_hidden_layers", 1, MAX_LAYERS),
        "num_heads": read.whole("num_attention_heads", 1, 2**10),
        "activation": read.one_of("hidden_act", ACTIVATIONS),
        "layer_norm_eps": read.number("layer_norm_eps", 0, 1),
    }
    if not read.problems and fields["hidden_size"] % fields["num_heads"]:
        expected = f"expected a divisor of hidden_size, {fields['hidden_size']}"
        read.wrong("num_attention_heads", fields["num_heads"], expected)
    return fields
