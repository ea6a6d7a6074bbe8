"""Small random Qwen-VL checkpoints of the real structure and key layout, made by transformers, and batches."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import models
from experiments.data.tiny_processor import CHAT_TEMPLATE, VOCABULARY, build_tokenizer
from tests.checkpoints import randomise, write

WORDS = 2000
IMAGE, VIDEO = WORDS, WORDS + 1
PATCH, MERGE, TEMPORAL, CHANNELS = 6, 2, 2, 3
# Frames, rows and columns of patches; a window has 6 x 6.
TALL, WIDE, SQUARE = (1, 14, 4), (1, 6, 16), (1, 10, 10)
FAMILIES = {
    "qwen2_5_vl": (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration),
}
PROCESSORS = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
CONFIG: dict[str, Any] = {
    "text_config": {
        "vocab_size": WORDS + 64,
        "hidden_size": 64,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 3e-4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 777.0, "mrope_section": [2, 3, 3]},
        "eos_token_id": None,  # nothing stops a generation
        "bos_token_id": 1,
        "pad_token_id": 0,
    },
    "vision_config": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 52,
        "num_heads": 2,
        "patch_size": PATCH,
        "out_hidden_size": 64,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 99.0},
    },
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": WORDS + 2,
    "vision_end_token_id": WORDS + 3,
    "tie_word_embeddings": False,
}
# What the families do not have in common, by part.
SPECIAL: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "vision_config": {"window_size": PATCH * MERGE * 3, "fullatt_block_indexes": [1], "tokens_per_second": 3}
    },
    "qwen3_vl": {
        "text_config": {
            "head_dim": 20,
            "rope_parameters": CONFIG["text_config"]["rope_parameters"] | {"mrope_section": [5, 3, 2]},
        },
        "vision_config": {"num_position_embeddings": 49, "deepstack_visual_indexes": [0, 2]},
    },
}


def hf_config(family: str = "qwen2_5_vl", **outer: Any) -> Any:
    """As transformers reads it."""
    parts = {
        part: CONFIG[part] | SPECIAL[family].get(part, {}) | outer.get(part, {})
        for part in ("text_config", "vision_config")
    }
    return FAMILIES[family][0](**copy.deepcopy(CONFIG | outer | parts))


def build(family: str = "qwen2_5_vl", **outer: Any) -> Any:
    """A random model of transformers."""
    model = FAMILIES[family][1](hf_config(family, **outer)).eval()
    randomise(model, 0)
    return model


def published(key: str, family: str = "qwen2_5_vl") -> str:
    """A key of transformers' memory as published files have it."""
    if family == "qwen3_vl":
        return key
    return re.sub(r"^model\.visual\.", "visual.", re.sub(r"^model\.language_model\.", "model.", key))


def make(
    folder: Path,
    family: str = "qwen2_5_vl",
    *,
    memory: bool = False,
    shards: int = 3,
    words: bool = False,
    **outer: Any,
) -> Any:
    """Save a model as a checkpoint, in the published keys or those of transformers' `memory`; gives it.

    With `words` it has a processor too, with the shipped model's words and template.
    """
    outer |= {"image_token_id": VOCABULARY.index("<image>"), "video_token_id": len(VOCABULARY)} if words else {}
    model = build(family, **outer)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if words:
        tokenizer = build_tokenizer()
        tokenizer.add_tokens("<|video_pad|>", special_tokens=True)
        video = "{% for part in message['content'] if part['type'] == 'video' %}{{ '<|video_pad|>\\n' }}{% endfor %}"
        tokenizer.chat_template = CHAT_TEMPLATE.replace("{% else %}", "{% else %}" + video)
        tokenizer.save_pretrained(folder)
        images = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": PROCESSORS[family]}
        images |= {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
        images |= {"min_pixels": 24**2, "max_pixels": 96**2}
        (folder / "preprocessor_config.json").write_text(json.dumps(images))
    tied = model.config.tie_word_embeddings
    state = {key: value for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")}
    spelled = {key if memory else published(key, family): x.clone().contiguous() for key, x in state.items()}
    write(folder, spelled, shards=shards)
    return model


def pair(family: str, folder: Path) -> tuple[Any, Any]:
    """Ours and transformers', from one checkpoint."""
    theirs = make(folder, family)
    return models.from_pretrained(folder), theirs


def patches(grids: list[tuple[int, int, int]], seed: int) -> np.ndarray:
    """What a processor gives: [patches of all, C * t * p * p]."""
    count = sum(int(np.prod(grid)) for grid in grids)
    return np.random.default_rng(seed).standard_normal((count, CHANNELS * TEMPORAL * PATCH**2)).astype(np.float32)


def batch(
    *rows: list[Any], seconds: float | None = None, side: str = "left", family: str = "qwen2_5_vl"
) -> dict[str, np.ndarray]:
    """Rows of words (how many), images and videos (their grids), padded on one side, as the processor gives them.

    Each frame of a video for Qwen3-VL stands by itself, behind two words that tell its time.
    """
    rng, made = np.random.default_rng(0), []
    images, videos = list[tuple[int, int, int]](), list[tuple[int, int, int]]()
    for row in rows:
        tokens = list[int]()
        for piece in row:
            if isinstance(piece, int):
                tokens += list(rng.integers(3, WORDS, piece))
                continue
            still = piece[0] == 1
            (images if still else videos).append(piece)
            apart = piece[0] if family == "qwen3_vl" else 1
            for _ in range(apart):
                tokens += [] if apart == 1 else list(rng.integers(3, WORDS, 2))
                placeholders = [IMAGE if still else VIDEO] * (int(np.prod(piece)) // MERGE**2 // apart)
                tokens += [WORDS + 2, *placeholders, WORDS + 3]
        made.append(tokens)
    width = max(map(len, made))
    out = {name: np.zeros((len(made), width), np.int64) for name in ("input_ids", "attention_mask")}
    for row, tokens in enumerate(made):
        where = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        out["input_ids"][row, where], out["attention_mask"][row, where] = tokens, 1
    out["mm_token_type_ids"] = 1 * (out["input_ids"] == IMAGE) + 2 * (out["input_ids"] == VIDEO)
    if images:
        out |= {"pixel_values": patches(images, 1), "image_grid_thw": np.array(images)}
    if videos:
        out |= {"pixel_values_videos": patches(videos, 2), "video_grid_thw": np.array(videos)}
        if seconds is not None and family == "qwen2_5_vl":
            out["second_per_grid_ts"] = np.full(len(videos), seconds, np.float32)
    return out


def as_torch(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in inputs.items()}
