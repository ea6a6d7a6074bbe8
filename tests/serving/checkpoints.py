"""Small random LLaVA-1.5 and LLaVA-NeXT as published: vLLM reads these key names, and transformers too."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from experiments.data.tiny_processor import CHAT_TEMPLATE, VOCABULARY, build_processor, build_tokenizer

IMAGE = VOCABULARY.index("<image>")
WIDTH, PATCH = 128, 14
TOWER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 120, "num_hidden_layers": 6, "num_attention_heads": 2}
TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": WIDTH,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
NEXT_SIDE = 84  # 36 tokens a tile
GRIDS = [[NEXT_SIDE * rows, NEXT_SIDE * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def make(folder: Path, family: str) -> None:
    """Writes weights, config and processor; `family` is "llava" or "llava_next"."""
    anyres = family == "llava_next"
    side, more = (NEXT_SIDE, {"image_grid_pinpoints": GRIDS}) if anyres else (336, {"image_seq_length": 576})
    config = transformers.AutoConfig.for_model(
        family,
        vision_config=transformers.CLIPVisionConfig(**TOWER, image_size=side, patch_size=PATCH),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **more,
    )
    model = transformers.AutoModelForImageTextToText.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # spread out, so that a greedy answer depends on what is seen
        for name, weight in model.named_parameters():
            like = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(1 + 0.3 * like if "norm.weight" in name or "layernorm" in name else 0.3 * like)
            else:
                weight.copy_((1.0 if "embed" in name else 1.5 * weight[0].numel() ** -0.5) * like)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({_published(key): value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    processor = build_processor()
    if anyres:
        images = LlavaNextImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=GRIDS
        )
        processor = transformers.LlavaNextProcessor(
            images,
            build_tokenizer(),
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )
    processor.save_pretrained(folder)


def _published(key: str) -> str:
    """transformers 5 leaves out a part of the tower's names."""
    return key.replace("vision_tower.", "vision_tower.vision_model.", 1) if key.startswith("vision_tower.") else key
