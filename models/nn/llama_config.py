"""Constants of a Llama-family decoder, from transformers' config."""

from __future__ import annotations

import dataclasses
from typing import Any

from models.config import MAX_LAYERS, Fields
from models.errors import ConfigError
from models.nn.linear import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A Llama-family decoder.

    `rope_factor` divides positions (1.0 without rotary scaling); `rope_sections` are how many of the head_dim / 2
    wavelengths follow each axis of the positions, `rope_interleaved` is whether in turn; `attention_bias` is of
    queries, keys and values, `output_bias` of what leaves attention; `head_norms` is whether each head's query and key
    have a norm; `max_positions` is the longest sequence it was trained for.
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
    rope_interleaved: bool
    attention_bias: bool
    output_bias: bool
    head_norms: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    sliding_window: int | None
    max_positions: int


def text_config(hf: Any) -> TextConfig:
    """`TextConfig` from the config of one of transformers' decoders; ConfigError with all that is unsupported."""
    if hf.model_type not in ("llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen3_vl_text"):
        raise ConfigError(f"text_config.model_type is {hf.model_type!r}; supported are 'llama', 'mistral' and 'qwen2'")
    # What they have without a field that says so: Qwen2 a bias on queries, keys and values, Qwen3 norms of heads.
    qwen2, qwen3 = hf.model_type in ("qwen2", "qwen2_5_vl_text"), hf.model_type == "qwen3_vl_text"
    three = hf.model_type.endswith("_vl_text")  # rotary positions: of time, row and column
    read = Fields(hf, "text_config.")
    # transformers 5 folds the older `rope_theta` and `rope_scaling` in here
    rope = Fields(read.get("rope_parameters") or {}, "text_config.rope_parameters.")
    if rope.get("rope_type") not in (None, "default", "linear"):
        read.problems.append(
            f"text_config asks for rotary scaling {rope.get('rope_type')!r}; supported are 'default' and 'linear'"
        )
    hidden_size = read.whole("hidden_size", 1, 2**17)
    num_heads = read.whole("num_attention_heads", 1, 2**12)
    num_kv_heads = read.whole("num_key_value_heads", 1, 2**12)
    head_dim = read.whole_or_none("head_dim", 2, 2**12) or hidden_size // num_heads
    if not read.problems and num_heads % num_kv_heads:
        read.wrong("num_key_value_heads", num_kv_heads, f"expected a divisor of the {num_heads} heads")
    if not read.problems and (head_dim < 2 or head_dim % 2):
        read.wrong("head_dim", head_dim, "expected an even number, for rotary embedding")
    half = head_dim // 2
    sections = rope.wholes("mrope_section", 0, half) if three or rope.get("mrope_section") else (half,)
    if three and not read.problems and (len(sections) != 3 or sum(sections) != half):
        rope.wrong("mrope_section", sections, f"expected three numbers that add up to {half}")
    elif qwen3 and any(axis + 3 * (count - 1) >= half for axis, count in enumerate(sections[1:], 1)):
        rope.wrong("mrope_section", sections, f"three axes cannot take turns so over {half} wavelengths")
    if rope.get("mrope_interleaved") not in (None, qwen3):
        rope.wrong("mrope_interleaved", rope.get("mrope_interleaved"), f"supported is {str(qwen3).lower()}")
    if read.flag("use_sliding_window"):
        read.wrong("use_sliding_window", True, "supported is false")
    config = TextConfig(
        vocab_size=read.whole("vocab_size", 1, 2**22),
        hidden_size=hidden_size,
        intermediate_size=read.whole("intermediate_size", 1, 2**20),
        num_layers=read.whole("num_hidden_layers", 1, MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        activation=read.one_of("hidden_act", ACTIVATIONS),
        rms_norm_eps=read.number("rms_norm_eps", 0, 1),
        rope_theta=rope.number("rope_theta", 1, 1e12),
        rope_factor=rope.number("factor", 1e-3, 1e6) if rope.get("rope_type") == "linear" else 1.0,
        rope_sections=sections,
        rope_interleaved=qwen3,
        attention_bias=qwen2 or read.flag("attention_bias"),
        output_bias=read.flag("attention_bias"),
        head_norms=qwen3,
        mlp_bias=read.flag("mlp_bias"),
        tie_word_embeddings=read.flag("tie_word_embeddings"),
        sliding_window=read.whole_or_none("sliding_window", 1, 2**31 - 1),
        max_positions=read.whole("max_position_embeddings", 1, 2**31 - 1),
    )
    read.problems += rope.problems
    read.check()
    return config
