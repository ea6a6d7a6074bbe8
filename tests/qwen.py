"""Small random Qwen2.5-VL checkpoints of the real structure and key layout, made by transformers, and batches."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from experiments.data.tiny_processor import CHAT_TEMPLATE, VOCABULARY, build_tokenizer
from tests.checkpoints import randomise, write

WORDS = 2000
IMAGE, VIDEO = WORDS, WORDS + 1
PATCH, MERGE, TEMPORAL, CHANNELS = 6, 2, 2, 3
# Frames, rows and columns of patches; a window has 6 x 6.
TALL, WIDE, SQUARE = (1, 14, 4), (1, 6, 16), (1, 10, 10)
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
        "window_size": PATCH * MERGE * 3,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 64,
        "tokens_per_second": 3,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 99.0},
    },
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": WORDS + 2,
    "vision_end_token_id": WORDS + 3,
    "tie_word_embeddings": False,
}


def hf_config(**outer: Any) -> Any:
    """As transformers reads it."""
    return transformers.Qwen2_5_VLConfig(**copy.deepcopy(CONFIG | outer))


def build(**outer: Any) -> Any:
    """A random model of transformers."""
    model = transformers.Qwen2_5_VLForConditionalGeneration(hf_config(**outer)).eval()
    randomise(model, 0)
    return model


def published(key: str) -> str:
    """A key of transformers' memory as published files have it."""
    return re.sub(r"^model\.visual\.", "visual.", re.sub(r"^model\.language_model\.", "model.", key))


def make(folder: Path, *, memory: bool = False, shards: int = 3, words: bool = False, **outer: Any) -> Any:
    """Save a model as a checkpoint, in the published keys or those of transformers' `memory`; gives it.

    With `words` it has a processor too, with the shipped model's words and template.
    """
    outer |= {"image_token_id": VOCABULARY.index("<image>"), "video_token_id": len(VOCABULARY)} if words else {}
    model = build(**outer)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if words:
        tokenizer = build_tokenizer()
        tokenizer.add_tokens("<|video_pad|>", special_tokens=True)
        video = "{% for part in message['content'] if part['type'] == 'video' %}{{ '<|video_pad|>\\n' }}{% endfor %}"
        tokenizer.chat_template = CHAT_TEMPLATE.replace("{% else %}", "{% else %}" + video)
        tokenizer.save_pretrained(folder)
        images = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
        images |= {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
        images |= {"min_pixels": 24**2, "max_pixels": 96**2}
        (folder / "preprocessor_config.json").write_text(json.dumps(images))
    tied = model.config.tie_word_embeddings
    state = {key: value for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")}
    write(
        folder, {key if memory else published(key): x.clone().contiguous() for key, x in state.items()}, shards=shards
    )
    return model


def patches(grids: list[tuple[int, int, int]], seed: int) -> np.ndarray:
    """What a processor gives: [patches of all, C * t * p * p]."""
    count = sum(int(np.prod(grid)) for grid in grids)
    return np.random.default_rng(seed).standard_normal((count, CHANNELS * TEMPORAL * PATCH**2)).astype(np.float32)


def batch(*rows: list[Any], seconds: float | None = None, side: str = "left") -> dict[str, np.ndarray]:
    """Rows of words (how many), images and videos (their grids), padded on one side, as the processor gives them."""
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
            tokens += [WORDS + 2, *[IMAGE if still else VIDEO] * (int(np.prod(piece)) // MERGE**2), WORDS + 3]
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
        if seconds is not None:
            out["second_per_grid_ts"] = np.full(len(videos), seconds, np.float32)
    return out


def as_torch(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in inputs.items()}
