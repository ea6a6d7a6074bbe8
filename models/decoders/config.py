"""Constants of a Llama-family decoder, from transformers' config."""

from __future__ import annotations

import dataclasses
from typing import Any

from models.config import ConfigError, activation_problems


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A Llama-family decoder.

    `rope_factor` divides positions (1.0 where rotary scaling is off); `rope_sections` says how many of the head_dim / 2
    wavelengths go by each axis of the positions.
    """

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
    rope_sections: tuple[int, ...]
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    sliding_window: int | None


def text_config(hf: Any) -> TextConfig:
    """`TextConfig` from a transformers `LlamaConfig` or `MistralConfig`.

    Raises:
      ConfigError: another decoder, an unknown activation, or a rotary scaling that is not implemented.
    """
    if hf.model_type not in ("llama", "mistral"):
        raise ConfigError(f"text_config.model_type is {hf.model_type!r}; supported are 'llama' and 'mistral'")
    rope = dict(hf.rope_parameters)  # transformers 5 folds the older `rope_theta` and `rope_scaling` in here
    rope_type = rope.get("rope_type", "default")
    problems = activation_problems(hf.hidden_act, "text_config.hidden_act")
    if rope_type not in ("default", "linear"):
        problems.append(f"text_config asks for rotary scaling {rope_type!r}; supported are 'default' and 'linear'")
    if problems:
        raise ConfigError(*problems)
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    return TextConfig(
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        head_dim=head_dim,
        activation=hf.hidden_act,
        rms_norm_eps=hf.rms_norm_eps,
        rope_theta=float(rope["rope_theta"]),
        rope_factor=float(rope["factor"]) if rope_type == "linear" else 1.0,
        rope_sections=tuple(rope.get("mrope_section") or [head_dim // 2]),
        attention_bias=getattr(hf, "attention_bias", False),
        mlp_bias=getattr(hf, "mlp_bias", False),
        tie_word_embeddings=bool(hf.tie_word_embeddings),
        sliding_window=getattr(hf, "sliding_window", None),
    )
