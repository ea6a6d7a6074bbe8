"""Tables of the LLaVA family: keys of Hugging Face checkpoints -> weights of `models.llava.Llava`.

Three spellings of the same keys are in use, and all are accepted:

    published files      language_model.model.*   vision_tower.vision_model.*   language_model.lm_head.weight
    transformers 5 files language_model.model.*   vision_tower.*                language_model.lm_head.weight
    in its memory        model.language_model.*   model.vision_tower.*          lm_head.weight

LLaVA-NeXT adds `image_newline` (`model.image_newline` in memory).

Exports are written in the first.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from models.checkpoint import AS_IS, Ignored, Row, Table, Transform, export_weights
from models.config import LlavaConfig, TextConfig, VisionConfig
from models.shards import SINGLE

if TYPE_CHECKING:  # models.llava imports this module
    from models.llava import Llava

MAPPING = 1  # raised whenever a converted folder of before would be read wrongly

# What a field of a key template stands for; a name that the model does not have is found when paths are compared.
_FIELDS = {"layer": "0|[1-9][0-9]*"}
_NAME = "[a-z0-9_]+"

_TOWER = r"(?:model\.)?vision_tower\.(?:vision_model\.)?"
_PROJECTOR = r"(?:model\.)?multi_modal_projector\."
_DECODER = r"(?:language_model\.model|model\.language_model)\."
_NEWLINE = r"(?:model\.)?"
_HEAD = r"(?:language_model\.)?lm_head\."


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


def tower_table(config: VisionConfig) -> Table:
    """The CLIP vision tower, at `vision_tower` of the model."""
    layer = "encoder.layers.{layer}."
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
        (layer + "{norm}.weight", "layers.{layer}.{norm}.scale", AS_IS),
        (layer + "{norm}.bias", "layers.{layer}.{norm}.bias", AS_IS),
        (layer + "self_attn.{linear}.weight", "layers.{layer}.self_attn.{linear}.weight", AS_IS),
        (layer + "self_attn.{linear}.bias", "layers.{layer}.self_attn.{linear}.bias", AS_IS),
        (layer + "mlp.{linear}.weight", "layers.{layer}.mlp.{linear}.weight", AS_IS),
        (layer + "mlp.{linear}.bias", "layers.{layer}.mlp.{linear}.bias", AS_IS),
    ]
    return [
        *_rows(_TOWER, "vision_tower.vision_model.", "vision_tower.", lines),
        Ignored(_pattern(_TOWER, "embeddings.position_ids"), "it is 0, 1, 2, ... and positions are read in order"),
    ]


def projector_table() -> Table:
    """The two linear layers between tower and decoder, at `projector` of the model."""
    lines = [
        ("{linear}.weight", "{linear}.weight", AS_IS),
        ("{linear}.bias", "{linear}.bias", AS_IS),
    ]
    return _rows(_PROJECTOR, "multi_modal_projector.", "projector.", lines)


def decoder_table(config: TextConfig) -> Table:
    """The Llama or Mistral decoder and its head, at `decoder` of the model."""
    layer = "layers.{layer}."
    lines = [
        ("embed_tokens.weight", "embed_tokens.embedding", AS_IS),
        ("norm.weight", "norm.scale", AS_IS),
        (layer + "{norm}.weight", "layers.{layer}.{norm}.scale", AS_IS),
        (layer + "self_attn.{linear}.weight", "layers.{layer}.self_attn.{linear}.weight", AS_IS),
        (layer + "self_attn.{linear}.bias", "layers.{layer}.self_attn.{linear}.bias", AS_IS),
        (layer + "mlp.{linear}.weight", "layers.{layer}.mlp.{linear}.weight", AS_IS),
        (layer + "mlp.{linear}.bias", "layers.{layer}.mlp.{linear}.bias", AS_IS),
    ]
    head = (
        [Ignored(_pattern(_HEAD, "weight"), "config.json ties it to the token embedding")]
        if config.tie_word_embeddings
        else _rows(_HEAD, "language_model.lm_head.", "decoder.lm_head.", [("weight", "weight", AS_IS)])
    )
    frequencies = "it follows from rope_theta"
    return [
        *_rows(_DECODER, "language_model.model.", "decoder.", lines),
        *head,
        Ignored(_pattern(_DECODER, "layers.{layer}.self_attn.rotary_emb.inv_freq"), frequencies),
        Ignored(_pattern(_DECODER, "rotary_emb.inv_freq"), frequencies),
    ]


def llava_table(config: LlavaConfig) -> Table:
    """Tower, projector and decoder, and LLaVA-NeXT's newline where the config asks for it."""
    newline = (
        [] if config.image_grid_pinpoints is None else _rows(_NEWLINE, "", "", [("image_newline",) * 2 + (AS_IS,)])
    )
    return [*tower_table(config.vision), *projector_table(), *newline, *decoder_table(config.text)]


def to_hf(model: Llava) -> dict[str, np.ndarray]:
    """A LLaVA's weights as published checkpoints name and shape them.

    Args:
      model: with weights.

    Returns:
      Arrays by key in the model's dtype; loaded again they give the same model bit by bit.
    """
    return export_weights(model, llava_table(model.config))


def export_safetensors(model: Llava, folder: Path | str) -> Path:
    """Write `folder/model.safetensors`, which both this package and transformers load.

    The file appears whole or not at all. `config.json` and the processor's files are the caller's.

    Args:
      model: with weights.
      folder: must exist.

    Returns:
      The file.
    """
    path = Path(folder) / SINGLE
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        unfinished = Path(scratch) / SINGLE
        save_file(to_hf(model), unfinished, metadata={"format": "pt"})
        os.replace(unfinished, path)
    return path
