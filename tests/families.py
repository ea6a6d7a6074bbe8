"""Published LLaVA checkpoints, small: their own config.json and key layout, with fewer and narrower layers.

`PUBLISHED` is what their config.json files say. `narrow` changes widths and depths, and nothing else.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from experiments.data.tiny_processor import CHAT_TEMPLATE, VOCABULARY, build_tokenizer
from tests.checkpoints import randomise, tensors, write

SHARDS = 3
SIDE, PATCH = 84, 14
ODD_SIDE = 75  # of LLaVA-OneVision's tiles, 5 x 5 patches and some pixels that are not seen
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
_QWEN2_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "torch_dtype": "float16",
    "vocab_size": 152128,
}
_QWEN2_HALF = _QWEN2_7B | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 152000,
}
_ONEVISION = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
    "image_token_index": 151646,
    "model_type": "llava_onevision",
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_image_newline_parameter": True,
    "video_token_index": 151647,
    "vision_aspect_ratio": "anyres_max_9",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 26,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": _LLAVA | {"text_config": _VICUNA_7B},
    "llava-1.5-13b": _LLAVA | {"text_config": _VICUNA_13B},
    "llava-v1.6-vicuna-7b": _NEXT | {"text_config": _VICUNA_7B},
    "llava-v1.6-vicuna-13b": _NEXT | {"text_config": _VICUNA_13B},
    "llava-v1.6-mistral-7b": _NEXT | {"text_config": _MISTRAL_7B},
    "llava-onevision-qwen2-0.5b": _ONEVISION | {"text_config": _QWEN2_HALF},
    "llava-onevision-qwen2-7b": _ONEVISION | {"text_config": _QWEN2_7B},
}


def hf_config(name: str) -> Any:
    """A published config as transformers reads it."""
    config = copy.deepcopy(PUBLISHED[name])
    return transformers.AutoConfig.for_model(config.pop("model_type"), **config)


def narrow(name: str) -> Any:
    """A published config with fewer and narrower layers and smaller images. Heads keep their proportions."""
    config = copy.deepcopy(PUBLISHED[name])
    grouped = config["text_config"].get("num_key_value_heads", 40) < 40
    side = config["vision_config"]["image_size"]
    small = ODD_SIDE if config["model_type"] == "llava_onevision" else SIDE
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
        "image_size": small,
        "patch_size": PATCH,
    }
    if pinpoints := config.get("image_grid_pinpoints"):
        config["image_grid_pinpoints"] = [[length * small // side for length in pair] for pair in pinpoints]
    if "video_token_index" in config:
        config |= {"video_token_index": WORDS + 2, "vision_aspect_ratio": "anyres_max_2"}  # few patches are many here
    config["torch_dtype"] = config["text_config"]["torch_dtype"] = "float32"
    return transformers.AutoConfig.for_model(config.pop("model_type"), **config)


def make(name: str, folder: Path, *, seed: int = 0, words: bool = False) -> Any:
    """A random small checkpoint of a family in its published key layout, in three shards; gives transformers' model.

    With `words` it has a processor too, with the shipped model's words and template.
    """
    config = narrow(name)
    if words:
        config.image_token_id = VOCABULARY.index("<image>")
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    randomise(model, seed)
    with torch.no_grad():
        if hasattr(model.model, "image_newline"):
            model.model.image_newline.normal_(generator=torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    write(folder, tensors(model), shards=SHARDS)
    if words and config.model_type == "llava_onevision":  # transformers' asks for torchvision, and cannot save one
        tokenizer = build_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
        image_processor(config).save_pretrained(folder)
        fields = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": (ODD_SIDE // PATCH) ** 2}
        fields |= {"vision_feature_select_strategy": "full", "vision_aspect_ratio": config.vision_aspect_ratio}
        (folder / "processor_config.json").write_text(json.dumps(fields))
    elif words:
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
    if config.model_type == "llava_onevision":
        size = {"height": ODD_SIDE, "width": ODD_SIDE}
        return LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=config.image_grid_pinpoints)
    return LlavaNextImageProcessorPil(size=size, crop_size=crop, image_grid_pinpoints=config.image_grid_pinpoints)


def onevision_processor(config: Any) -> Any:
    """transformers' processor, which expands placeholders, without the video processor that asks for torchvision."""
    processor = object.__new__(transformers.LlavaOnevisionProcessor)
    processor.image_processor, processor.num_image_tokens = image_processor(config), (ODD_SIDE // PATCH) ** 2
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.vision_aspect_ratio, processor.image_token, processor.video_token = config.vision_aspect_ratio, "i", "v"
    return processor


def batch(
    config: Any,
    images: tuple[int, ...],
    words: tuple[int, ...],
    seed: int = 0,
    *,
    frames: tuple[int, ...] | None = None,
    photos: list[Image.Image] | None = None,
) -> dict[str, np.ndarray]:
    """Rows with so many photographs and words, padded on the left, as a processor gives them.

    Of LLaVA-OneVision, with a video of so many `frames` behind them, all as long or none.
    """
    rng, photos, processor = np.random.default_rng(seed), photos or photographs(), image_processor(config)
    chosen = [photos[i % len(photos)] for i in range(sum(images))]
    if config.model_type == "llava_onevision":
        ends, expand = np.cumsum(images), onevision_processor(config)
        own = [chosen[end - count : end] for end, count in zip(ends, images, strict=True)]
        out = dict(processor(own, return_tensors="np")) if chosen else {}
        sizes = [len(expand.replace_image_token(out, i)) for i in range(len(chosen))]
    else:
        out = dict(processor(chosen, return_tensors="np"))
    if config.model_type == "llava":
        sizes = [(SIDE // PATCH) ** 2] * len(chosen)
    elif config.model_type == "llava_next":
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
    if frames:
        shape = np.count_nonzero(frames), max(frames), 3, ODD_SIDE, ODD_SIDE
        out["pixel_values_videos"] = rng.standard_normal(shape, dtype=np.float32)
    for count, length, film in zip(images, words, frames or [0] * len(images), strict=True):
        row = list(rng.integers(3, WORDS, length // 2))
        for size in sizes[at : at + count]:
            row += [config.image_token_id] * size + list(rng.integers(3, WORDS, 2))
        if film:
            tokens = expand.replace_video_token({"pixel_values_videos": np.zeros((1, film))}, 0)
            row += [config.video_token_id] * len(tokens) + list(rng.integers(3, WORDS, 2))
        rows.append(row + list(rng.integers(3, WORDS, length - length // 2)))
        at += count
    width = max(map(len, rows))
    out["input_ids"], out["attention_mask"] = np.zeros((2, len(rows), width), np.int64)
    for i, row in enumerate(rows):
        out["input_ids"][i, width - len(row) :] = row
        out["attention_mask"][i, width - len(row) :] = 1
    return out
