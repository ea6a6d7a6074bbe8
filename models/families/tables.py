"""Tables of the LLaVA families' parts: keys of Hugging Face checkpoints -> weights of the model.

Three spellings of the same keys are in use, and all are accepted:

    published files      language_model.model.*   vision_tower.vision_model.*   language_model.lm_head.weight
    transformers 5 files language_model.model.*   vision_tower.*                language_model.lm_head.weight
    in its memory        model.language_model.*   model.vision_tower.*          lm_head.weight

LLaVA-NeXT and LLaVA-OneVision add `image_newline` (`model.image_newline` in memory).

Exports are written in the first.

Qwen2.5-VL's published files say `visual.*` and `model.*`, transformers 5 in its memory `model.visual.*` and
`model.language_model.*`; `lm_head.*` is the same. Qwen3-VL's say everywhere what transformers 5 has in memory.

CLIP's keys, for relevance, have one spelling: `text_model.*`, `vision_model.*`, and two projections.
"""

from __future__ import annotations

import re

from models.io.table import AS_IS, Ignored, Row, Table, Transform
from models.nn.clip_config import VisionConfig
from models.nn.llama_config import TextConfig
from models.nn.qwen_vision import QwenTowerConfig
from models.nn.siglip import SiglipVisionConfig

# The values of a field in a key template; names that the model does not have are found when paths are compared.
_FIELDS = {"layer": "0|[1-9][0-9]*", "head_norm": "[qk]_norm", "projection": "[qkvo]_proj", "block_norm": "norm[12]"}
_NAME = "[a-z0-9_]+"

_TOWER = r"(?:model\.)?vision_tower\.(?:vision_model\.)?"
_PROJECTOR = r"(?:model\.)?multi_modal_projector\."
_NEWLINE = r"(?:model\.)?"
# Of decoder and head: what is read, and what is written.
_DECODERS = {
    "llava": (
        (r"(?:language_model\.model|model\.language_model)\.", "language_model.model."),
        (r"(?:language_model\.)?lm_head\.", "language_model.lm_head."),
    ),
    "qwen2": ((r"model\.(?:language_model\.)?", "model."), (r"lm_head\.", "lm_head.")),
    "qwen3": ((r"model\.language_model\.", "model.language_model."), (r"lm_head\.", "lm_head.")),
}
_POSITION_IDS = "it is 0, 1, 2, ... and positions are read in order"


def _pattern(prefix: str, key: str) -> str:
    """ "a.{layer}.b" -> a regular expression with a named group for each field."""
    return prefix + re.sub(
        r"\\\{(\w+)\\\}", lambda field: f"(?P<{field[1]}>{_FIELDS.get(field[1], _NAME)})", re.escape(key)
    )


def _rows(prefix: str, published: str, root: str, lines: list[tuple[str, str, Transform]]) -> list[Row | Ignored]:
    return [Row(_pattern(prefix, key), root + target, published + key, how) for key, target, how in lines]


def patches(channels: int, patch_size: int) -> Transform:
    """A convolution's kernel [D, C, p, p] <-> a matrix [D, C * p * p] for flattened patches."""
    return Transform(
        load=lambda kernel: kernel.reshape(kernel.shape[0], -1),
        save=lambda matrix: matrix.reshape(-1, channels, patch_size, patch_size),
    )


def _encoder_lines() -> list[tuple[str, str, Transform]]:
    """The layers of CLIP's towers."""
    layer = "encoder.layers.{layer}."
    return [
        (layer + "{norm}.weight", "layers.{layer}.{norm}.scale", AS_IS),
        (layer + "{norm}.bias", "layers.{layer}.{norm}.bias", AS_IS),
        (layer + "self_attn.{linear}.weight", "layers.{layer}.self_attn.{linear}.weight", AS_IS),
        (layer + "self_attn.{linear}.bias", "layers.{layer}.self_attn.{linear}.bias", AS_IS),
        (layer + "mlp.{linear}.weight", "layers.{layer}.mlp.{linear}.weight", AS_IS),
        (layer + "mlp.{linear}.bias", "layers.{layer}.mlp.{linear}.bias", AS_IS),
    ]


def tower_table(config: VisionConfig) -> Table:
    """The vision tower, CLIP's or SigLIP's, at `vision_tower` of the model."""
    lines = [
        ("embeddings.class_embedding", "class_embedding", AS_IS),
        (
            "embeddings.patch_embedding.weight",
            "patch_embedding.weight",
            patches(config.num_channels, config.patch_size),
        ),
        ("embeddings.position_embedding.weight", "position_embedding", AS_IS),
        ("pre_layrnorm.weight", "pre_layernorm.scale", AS_IS),  # the published spelling
        ("pre_layrnorm.bias", "pre_layernorm.bias", AS_IS),
        ("post_layernorm.weight", "post_layernorm.scale", AS_IS),
        ("post_layernorm.bias", "post_layernorm.bias", AS_IS),
        *_encoder_lines(),
    ]
    if isinstance(config, SiglipVisionConfig):
        lines.append(("embeddings.patch_embedding.bias", "patch_embedding.bias", AS_IS))
    return [
        *_rows(_TOWER, "vision_tower.vision_model.", "vision_tower.", lines),
        Ignored(_pattern(_TOWER, "embeddings.position_ids"), _POSITION_IDS),
    ]


def projector_table() -> Table:
    """The two linear layers between tower and decoder, at `projector` of the model."""
    lines = [("{linear}.weight", "{linear}.weight", AS_IS), ("{linear}.bias", "{linear}.bias", AS_IS)]
    return _rows(_PROJECTOR, "multi_modal_projector.", "projector.", lines)


def _qwen_tower_lines(config: QwenTowerConfig) -> list[tuple[str, str, Transform]]:
    """What the towers of Qwen2.5-VL and Qwen3-VL have in common."""
    block, own = "blocks.{layer}.", "vision_tower.layers.{layer}."
    pixels = (config.num_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    kernel = Transform(load=lambda x: x.reshape(x.shape[0], -1), save=lambda x: x.reshape(-1, *pixels))
    three = Transform(load=lambda x: x.reshape(3, -1, *x.shape[1:]), save=lambda x: x.reshape(-1, *x.shape[2:]))
    return [
        ("patch_embed.proj.weight", "vision_tower.patch_embedding.weight", kernel),
        (block + "{norm}.weight", own + "{norm}.scale", AS_IS),
        (block + "attn.qkv.weight", own + "qkv.weight", three),
        (block + "attn.qkv.bias", own + "qkv.bias", three),
        (block + "attn.proj.weight", own + "out_proj.weight", AS_IS),
        (block + "attn.proj.bias", own + "out_proj.bias", AS_IS),
    ]


def qwen_vision_table(config: QwenTowerConfig) -> Table:
    """Qwen2.5-VL's tower and merger, at `vision_tower` and `projector` of the model."""
    mlp, own = "blocks.{layer}.mlp.{linear}.", "vision_tower.layers.{layer}.mlp.{linear}."
    lines = [
        *_qwen_tower_lines(config),
        (mlp + "weight", own + "weight", AS_IS),
        (mlp + "bias", own + "bias", AS_IS),
        ("merger.ln_q.weight", "projector.norm.scale", AS_IS),
        ("merger.mlp.0.weight", "projector.linear_1.weight", AS_IS),
        ("merger.mlp.0.bias", "projector.linear_1.bias", AS_IS),
        ("merger.mlp.2.weight", "projector.linear_2.weight", AS_IS),
        ("merger.mlp.2.bias", "projector.linear_2.bias", AS_IS),
    ]
    return _rows(r"(?:model\.)?visual\.", "visual.", "", lines)


def qwen3_vision_table(config: QwenTowerConfig) -> Table:
    """Qwen3-VL's tower and mergers, at `vision_tower`, `projector` and `deepstack` of the model."""
    block, own = "blocks.{layer}.", "vision_tower.layers.{layer}."
    mergers = (("merger.", "projector."), ("deepstack_merger_list.{layer}.", "deepstack.{layer}."))
    lines = [
        *_qwen_tower_lines(config),
        ("patch_embed.proj.bias", "vision_tower.patch_embedding.bias", AS_IS),
        ("pos_embed.weight", "vision_tower.position_embedding", AS_IS),
        (block + "{block_norm}.bias", own + "{block_norm}.bias", AS_IS),
        (block + "mlp.linear_{linear}.weight", own + "mlp.{linear}.weight", AS_IS),
        (block + "mlp.linear_{linear}.bias", own + "mlp.{linear}.bias", AS_IS),
    ]
    for merger, target in mergers:
        lines += [
            (merger + "norm.weight", target + "norm.scale", AS_IS),
            (merger + "norm.bias", target + "norm.bias", AS_IS),
            (merger + "linear_fc{number}.weight", target + "linear_{number}.weight", AS_IS),
            (merger + "linear_fc{number}.bias", target + "linear_{number}.bias", AS_IS),
        ]
    return _rows(r"model\.visual\.", "model.visual.", "", lines)


def decoder_table(config: TextConfig, *, spelling: str = "llava") -> Table:
    """The decoder and its head, at `decoder` of the model, in a spelling of `_DECODERS`."""
    (decoder, written), (head_pattern, written_head) = _DECODERS[spelling]
    layer = "layers.{layer}."
    lines = [
        ("embed_tokens.weight", "embed_tokens.embedding", AS_IS),
        ("norm.weight", "norm.scale", AS_IS),
        (layer + "{norm}.weight", "layers.{layer}.{norm}.scale", AS_IS),
        (layer + "self_attn.{projection}.weight", "layers.{layer}.self_attn.{projection}.weight", AS_IS),
        (layer + "self_attn.{projection}.bias", "layers.{layer}.self_attn.{projection}.bias", AS_IS),
        (layer + "mlp.{linear}.weight", "layers.{layer}.mlp.{linear}.weight", AS_IS),
        (layer + "mlp.{linear}.bias", "layers.{layer}.mlp.{linear}.bias", AS_IS),
    ]
    if config.head_norms:
        lines.append((layer + "self_attn.{head_norm}.weight", "layers.{layer}.self_attn.{head_norm}.scale", AS_IS))
    head = (
        [Ignored(_pattern(head_pattern, "weight"), "config.json ties it to the token embedding")]
        if config.tie_word_embeddings
        else _rows(head_pattern, written_head, "decoder.lm_head.", [("weight", "weight", AS_IS)])
    )
    frequencies = "it follows from rope_theta"
    return [
        *_rows(decoder, written, "decoder.", lines),
        *head,
        Ignored(_pattern(decoder, "layers.{layer}.self_attn.rotary_emb.inv_freq"), frequencies),
        Ignored(_pattern(decoder, "rotary_emb.inv_freq"), frequencies),
    ]


def newline_table() -> Table:
    """LLaVA-NeXT's newline, at `image_newline` of the model."""
    return _rows(_NEWLINE, "", "", [("image_newline", "image_newline", AS_IS)])


def clip_table() -> Table:
    """A CLIP checkpoint, of which `models.nn.clip_text.Clip` holds a part."""
    text = [
        ("embeddings.token_embedding.weight", "token_embedding", AS_IS),
        ("embeddings.position_embedding.weight", "position_embedding", AS_IS),
        *_encoder_lines(),
        ("final_layer_norm.weight", "final_layer_norm.scale", AS_IS),
        ("final_layer_norm.bias", "final_layer_norm.bias", AS_IS),
    ]
    shared = [
        ("text_projection.weight", "text_projection.weight", AS_IS),
        ("visual_projection.weight", "patches.projection.weight", AS_IS),
        ("vision_model.post_layernorm.weight", "patches.post_layernorm.scale", AS_IS),
        ("vision_model.post_layernorm.bias", "patches.post_layernorm.bias", AS_IS),
    ]
    return [
        *_rows(r"text_model\.", "text_model.", "text_tower.", text),
        *_rows("", "", "", shared),
        Ignored(r"text_model\.embeddings\.position_ids", _POSITION_IDS),
        Ignored(r"vision_model\.(?!post_layernorm\.).*", "the model has this tower"),
        Ignored("logit_scale", "cosines are compared with each other alone"),
    ]
