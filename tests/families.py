"""The five published LLaVA checkpoints, small: their own config.json and key layout, with fewer and narrower layers.

`PUBLISHED` is what their config.json files say. `narrow` changes widths and depths, and nothing else.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from experiments.data.tiny_processor import CHAT_TEMPLATE, VOCABULARY, build_tokenizer
from tests.checkpoints import randomise, tensors, write

SHARDS = 3
SIDE, PATCH = 84, 14
WORDS = 2000  # of the small vocabulary; the placeholder and the pad token come next, as published

_VICUNA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
_VICUNA_13B = _VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}
_MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
_TOWER = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
_LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": _TOWER,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
_NEXT = _LLAVA | {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "model_type": "llava_next",
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "use_image_newline_parameter": True,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": _LLAVA | {"text_config": _VICUNA_7B},
    "llava-1.5-13b": _LLAVA | {"text_config": _VICUNA_13B},
    "llava-v1.6-vicuna-7b": _NEXT | {"text_config": _VICUNA_7B},
    "llava-v1.6-vicuna-13b": _NEXT | {"text_config": _VICUNA_13B},
    "llava-v1.6-mistral-7b": _NEXT | {"text_config": _MISTRAL_7B},
}


def hf_config(name: str) -> Any:
    """A published config as transformers reads it."""
    config = copy.deepcopy(PUBLISHED[name])
    return transformers.AutoConfig.for_model(config.pop("model_type"), **config)


def narrow(name: str) -> Any:
    """A published config with fewer and narrower layers and smaller images. Heads keep their proportions."""
    config = copy.deepcopy(PUBLISHED[name])
    grouped = config["text_config"].get("num_key_value_heads") == 8
    heads = 5 if "13b" in name else 4
    config["text_config"] |= {
        "hidden_size": 16 * heads,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": 1 if grouped else heads,
        "eos_token_id": None,  # nothing stops a generation
        "vocab_size": WORDS + 64,
    }
    config |= {"image_token_index": WORDS, "pad_token_id": WORDS + 1}
    config["vision_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    if pinpoints := config.get("image_grid_pinpoints"):
        config["image_grid_pinpoints"] = [[length * SIDE // 336 for length in pair] for pair in pinpoints]
    config["torch_dtype"] = config["text_config"]["torch_dtype"] = "float32"
    return transformers.AutoConfig.for_model(config.pop("model_type"), **config)


def make(name: str, folder: Path, *, seed: int = 0, words: bool = False) -> Any:
    """A random small checkpoint of a family in its published key layout, in three shards; gives transformers' model.

    With `words` it has a processor too, with the shipped model's words and template.
    """
    config = narrow(name)
    if words:
        config.image_token_id = VOCABULARY.index("<image>")
    classes = {"llava": transformers.LlavaForConditionalGeneration}
    model = classes.get(config.model_type, transformers.LlavaNextForConditionalGeneration)(config).eval()
    randomise(model, seed)
    with torch.no_grad():
        if hasattr(model.model, "image_newline"):
            model.model.image_newline.normal_(generator=torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    write(folder, tensors(model), shards=SHARDS)
    if words:
        kinds = {"llava": transformers.LlavaProcessor, "llava_next": transformers.LlavaNextProcessor}
        processor = kinds[config.model_type](
            image_processor=image_processor(config),
            tokenizer=build_tokenizer(),
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )
        processor.save_pretrained(folder)
    return model


def photographs() -> list[Image.Image]:
    """A real photograph whole, tall and wide, for grids of different shape."""
    whole = Image.fromarray(load_sample_images().images[0])  # 427 x 640
    return [whole.crop((0, 0, 500, 427)), whole.crop((100, 0, 220, 400)), whole.crop((0, 100, 640, 250))]


def image_processor(config: Any) -> Any:
    """The family's image processor, for the small images of `narrow`."""
    size = {"shortest_edge": SIDE}
    crop = {"height": SIDE, "width": SIDE}
    if config.model_type == "llava":
        return CLIPImageProcessorPil(size=size, crop_size=crop)
    return LlavaNextImageProcessorPil(size=size, crop_size=crop, image_grid_pinpoints=config.image_grid_pinpoints)


def batch(config: Any, images: tuple[int, ...], words: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with so many photographs and words, padded on the left, as a processor gives them."""
    rng, photos, processor = np.random.default_rng(seed), photographs(), image_processor(config)
    chosen = [photos[i % len(photos)] for i in range(sum(images))]
    out = dict(processor(chosen, return_tensors="np"))
    if config.model_type == "llava":
        sizes = [(SIDE // PATCH) ** 2] * len(chosen)
    else:
        expand = transformers.LlavaNextProcessor._get_unpadded_features
        sizes = []
        for height, width in out["image_sizes"]:
            grid = transformers.image_processing_utils.select_best_resolution(
                (height, width), config.image_grid_pinpoints
            )
            side = SIDE // PATCH
            unpadded, newlines = expand(None, height, width, side, side, grid[0] // SIDE, grid[1] // SIDE)
            sizes.append(side**2 + unpadded + newlines)
    rows, at = [], 0
    for count, length in zip(images, words, strict=True):
        row = list(rng.integers(3, WORDS, length // 2))
        for size in sizes[at : at + count]:
            row += [config.image_token_id] * size + list(rng.integers(3, WORDS, 2))
        rows.append(row + list(rng.integers(3, WORDS, length - length // 2)))
        at += count
    width = max(map(len, rows))
    out["input_ids"], out["attention_mask"] = np.zeros((2, len(rows), width), np.int64)
    for i, row in enumerate(rows):
        out["input_ids"][i, width - len(row) :] = row
        out["attention_mask"][i, width - len(row) :] = 1
    return out
