"""Architecture constants, read once from a checkpoint's `config.json` by transformers' own config classes.

Every field is read by a module of this package, and no module has a default for one of them: what the checkpoint
says is what runs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.layers import ACTIVATIONS


class ConfigError(ValueError):
    """A checkpoint asks for something that this package does not build, or its config cannot be read.

    Attributes:
      problems: one or more; the message holds them all.
    """

    def __init__(self, *problems: str):
        self.problems = problems
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        super().__init__(count + "; ".join(problems))


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


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A Llama-family decoder. `rope_factor` divides positions (1.0 where rotary scaling is off)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    activation: str
    rms_norm_eps: float
    rope_theta: float
    rope_factor: float
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    sliding_window: int | None


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """Tower, projector and decoder of a LLaVA.

    Attributes:
      vision: the tower.
      text: the decoder.
      image_token_id: the placeholder that the processor repeats once per visual token.
      feature_layers: hidden states of the tower that are concatenated as features; 0 is the embedding's output,
        `num_layers` the last layer's. Always non-negative here.
      keep_class_token: whether the class token is handed to the decoder too (`vision_feature_select_strategy`
        "full") or dropped ("default").
      projector_activation: between the two linear layers of the projector.
      projector_bias: whether these have a bias.
      eos_token_ids: generation stops at any of them.
      pad_token_id: fills rows that have ended.
      image_grid_pinpoints: LLaVA-NeXT's: (height, width) in pixels of the grids that an image may be cut into. None
        where every image is one tile.
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    feature_layers: tuple[int, ...]
    keep_class_token: bool
    projector_activation: str
    projector_bias: bool
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    image_grid_pinpoints: tuple[tuple[int, int], ...] | None = None

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one tile; without `image_grid_pinpoints`, of one image."""
        return self.vision.num_patches + int(self.keep_class_token)


def _activation_problems(name: Any, where: str) -> list[str]:
    return [] if name in ACTIVATIONS else [f"{where} is {name!r}; supported are {', '.join(sorted(ACTIVATIONS))}"]


def vision_config(hf: Any) -> VisionConfig:
    """`VisionConfig` from a transformers `CLIPVisionConfig`.

    Raises:
      ConfigError: another kind of tower, or an unknown activation.
    """
    if hf.model_type != "clip_vision_model":
        raise ConfigError(f"vision_config.model_type is {hf.model_type!r}; only 'clip_vision_model' is supported")
    if problems := _activation_problems(hf.hidden_act, "vision_config.hidden_act"):
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


def text_config(hf: Any) -> TextConfig:
    """`TextConfig` from a transformers `LlamaConfig` or `MistralConfig`.

    Raises:
      ConfigError: another decoder, an unknown activation, or a rotary scaling that is not implemented.
    """
    if hf.model_type not in ("llama", "mistral"):
        raise ConfigError(f"text_config.model_type is {hf.model_type!r}; supported are 'llama' and 'mistral'")
    rope = dict(hf.rope_parameters)  # transformers 5 folds the older `rope_theta` and `rope_scaling` in here
    rope_type = rope.get("rope_type", "default")
    problems = _activation_problems(hf.hidden_act, "text_config.hidden_act")
    if rope_type not in ("default", "linear"):
        problems.append(f"text_config asks for rotary scaling {rope_type!r}; supported are 'default' and 'linear'")
    if problems:
        raise ConfigError(*problems)
    return TextConfig(
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        activation=hf.hidden_act,
        rms_norm_eps=hf.rms_norm_eps,
        rope_theta=float(rope["rope_theta"]),
        rope_factor=float(rope["factor"]) if rope_type == "linear" else 1.0,
        attention_bias=getattr(hf, "attention_bias", False),
        mlp_bias=getattr(hf, "mlp_bias", False),
        tie_word_embeddings=bool(hf.tie_word_embeddings),
        sliding_window=getattr(hf, "sliding_window", None),
    )


def _special_token(hf: Any, name: str, generation: Mapping[str, Any]) -> Any:
    """From generation_config.json, else the outer config, else the decoder's: published files have it on any."""
    found = (generation.get(name), getattr(hf, name, None), getattr(hf.text_config, name, None))
    return next((value for value in found if value is not None), None)


def llava_config(hf: Any, generation: Mapping[str, Any] = MappingProxyType({})) -> LlavaConfig:
    """`LlavaConfig` from a transformers `LlavaConfig` or `LlavaNextConfig`.

    Args:
      hf: the config.
      generation: what `generation_config.json` holds, which goes first for the tokens that end and pad a row.

    Raises:
      ConfigError: with every architecture, activation and feature choice that is not supported.
    """
    if hf.model_type not in ("llava", "llava_next"):
        raise ConfigError(f"config.json has model_type {hf.model_type!r}; supported are 'llava' and 'llava_next'")
    layers = hf.vision_feature_layer
    layers = tuple(layers) if isinstance(layers, (list, tuple)) else (layers,)
    depth = hf.vision_config.num_hidden_layers + 1
    pinpoints = None
    if hf.model_type == "llava_next":
        pinpoints = tuple((int(height), int(width)) for height, width in hf.image_grid_pinpoints)
    parts: list[Any] = []
    problems = _problems(hf, layers, depth, pinpoints)
    for read, part in ((vision_config, hf.vision_config), (text_config, hf.text_config)):
        try:
            parts.append(read(part))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    vision, text = parts
    # transformers 5 keeps the tie on the outer config, older files on the decoder's: either one ties.
    tied = bool(hf.tie_word_embeddings) or text.tie_word_embeddings
    eos = _special_token(hf, "eos_token_id", generation)
    eos_ids = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    pad = _special_token(hf, "pad_token_id", generation)
    return LlavaConfig(
        vision=vision,
        text=dataclasses.replace(text, tie_word_embeddings=tied),
        image_token_id=hf.image_token_id,
        feature_layers=tuple(layer % depth for layer in layers),
        keep_class_token=hf.vision_feature_select_strategy == "full",
        projector_activation=hf.projector_hidden_act,
        projector_bias=hf.multimodal_projector_bias,
        eos_token_ids=eos_ids,
        pad_token_id=pad if pad is not None else (*eos_ids, 0)[0],
        image_grid_pinpoints=pinpoints,
    )


def _problems(hf: Any, layers: tuple[int, ...], depth: int, pinpoints: tuple[tuple[int, int], ...] | None) -> list[str]:
    """What a LLaVA's own fields, tower and decoder apart, ask for in vain."""
    problems = _activation_problems(hf.projector_hidden_act, "projector_hidden_act")
    if any(not -depth <= layer < depth for layer in layers):
        problems.append(f"vision_feature_layer {layers} is outside the tower's {depth} hidden states")
    strategy = hf.vision_feature_select_strategy
    if strategy not in ("default", "full"):
        problems.append(f"vision_feature_select_strategy is {strategy!r}; expected 'default' or 'full'")
    if pinpoints is not None:
        side = hf.vision_config.image_size
        if not pinpoints or any(length < side or length % side for pair in pinpoints for length in pair):
            problems.append(f"image_grid_pinpoints is {hf.image_grid_pinpoints}; expected multiples of {side} pixels")
        if strategy == "full":
            problems.append("vision_feature_select_strategy is 'full'; the grids of 'llava_next' need 'default'")
    return problems


def read_config(folder: str | Path) -> LlavaConfig:
    """Read `folder/config.json`, and `generation_config.json` beside it where there is one.

    Args:
      folder: a local folder in Hugging Face format.

    Returns:
      The model's constants.

    Raises:
      ConfigError: no readable `config.json`, or one that asks for something unsupported.
    """
    # Imported here: it takes a second that `--help` should not wait for.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} has no config.json; expected a checkpoint folder in Hugging Face format")
    try:
        hf = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as a model config: {reason}") from error
    return llava_config(hf, _generation_config(Path(folder) / "generation_config.json"))


def _generation_config(path: Path) -> dict[str, Any]:
    """What a folder's generation_config.json holds; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
