"""Inputs by seed, the same for the recorder and for the comparison: a LLaVA checkpoint, prompts, and plain arrays.

The tower has 24 layers and 576 patches, as constants in the authors' code want it, and the decoder 17 layers, all
narrow. Letters: I images, N visual tokens, D width.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SEED, IMAGES, PATCHES, SIDE = 2026, 4, 576, 336
SYSTEM, QUESTIONS = 5, (7, 12, 9, 10)  # tokens before the image, and behind it in each row
PLACEHOLDER, WORDS, SPACE = 127, 120, 16
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
    "projection_dim": SPACE,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "model_type": "clip_vision_model",
}
DECODER = {
    "hidden_size": 192,
    "intermediate_size": 96,
    "num_hidden_layers": 17,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "model_type": "llama",
}


def draw(*about: str | int) -> np.random.Generator:
    """A generator for what is named."""
    return np.random.default_rng([SEED, *(zlib.crc32(str(part).encode()) for part in about)])


def _shapes() -> dict[str, tuple[int, ...]]:
    wide, inner, text, hidden = (
        TOWER["hidden_size"],
        TOWER["intermediate_size"],
        DECODER["hidden_size"],
        DECODER["intermediate_size"],
    )
    tower, decoder = "vision_tower.vision_model.", "language_model.model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}embeddings.class_embedding": (wide,),
        f"{tower}embeddings.patch_embedding.weight": (wide, 3, 14, 14),
        f"{tower}embeddings.position_embedding.weight": (PATCHES + 1, wide),
        "multi_modal_projector.linear_1.weight": (text, wide),
        "multi_modal_projector.linear_1.bias": (text,),
        "multi_modal_projector.linear_2.weight": (text, text),
        "multi_modal_projector.linear_2.bias": (text,),
        f"{decoder}embed_tokens.weight": (DECODER["vocab_size"], text),
        f"{decoder}norm.weight": (text,),
        "language_model.lm_head.weight": (DECODER["vocab_size"], text),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{tower}{norm}.{part}": (wide,) for part in ("weight", "bias")}
    for layer in range(TOWER["num_hidden_layers"]):
        here = f"{tower}encoder.layers.{layer}."
        shapes |= {f"{here}layer_norm{i}.{part}": (wide,) for i in (1, 2) for part in ("weight", "bias")}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{here}self_attn.{name}.weight": (wide, wide), f"{here}self_attn.{name}.bias": (wide,)}
        shapes |= {f"{here}mlp.fc1.weight": (inner, wide), f"{here}mlp.fc1.bias": (inner,)}
        shapes |= {f"{here}mlp.fc2.weight": (wide, inner), f"{here}mlp.fc2.bias": (wide,)}
    for layer in range(DECODER["num_hidden_layers"]):
        here = f"{decoder}layers.{layer}."
        shapes |= {f"{here}{norm}.weight": (text,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{here}self_attn.{name}_proj.weight": (text, text) for name in "qkvo"}
        shapes |= {f"{here}mlp.{name}_proj.weight": (hidden, text) for name in ("gate", "up")}
        shapes[f"{here}mlp.down_proj.weight"] = (text, hidden)
    return shapes


def _weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Sharp attention, branches that do not drown the residual, norms near one."""
    drawn = draw(key).standard_normal(shape)
    if "norm" in key and key.endswith("weight"):
        return 1 + 0.2 * drawn
    if key.endswith("bias"):
        return 0.2 * drawn
    if "embed" in key and len(shape) < 4:
        return 0.7 * drawn
    scale = 1.4 if "q_proj" in key or "k_proj" in key else 0.5 if "o_proj" in key or "out_proj" in key else 0.9
    return scale * drawn / np.prod(shape[1:]) ** 0.5


def write_checkpoint(folder: Path) -> None:
    """The model, as published checkpoints are: config.json and model.safetensors."""
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": PLACEHOLDER,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "vision_config": TOWER,
        "text_config": DECODER,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = {key: _weight(key, shape).astype(np.float32) for key, shape in _shapes().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pixels() -> np.ndarray:
    """[I, 3, side, side] float32: patches of different brightness, with texture."""
    rng = draw("pixels")
    coarse = rng.standard_normal((IMAGES, 3, 24, 24)).repeat(14, axis=2).repeat(14, axis=3)
    return (coarse + 0.5 * rng.standard_normal((IMAGES, 3, SIDE, SIDE))).astype(np.float32)


def prompt(row: int) -> np.ndarray:
    """[S] token ids of a row, placeholders expanded."""
    words = draw("words", row).integers(1, WORDS, SYSTEM + QUESTIONS[row])
    return np.concatenate([words[:SYSTEM], np.full(PATCHES, PLACEHOLDER), words[SYSTEM:]])


def clip() -> dict[str, np.ndarray]:
    """CLIP's embeddings of the rows' questions [I, pieces, P], and the projection of patches [P, C]."""
    texts = draw("texts").standard_normal((IMAGES, 2, SPACE))
    projection = draw("projection").standard_normal((SPACE, TOWER["hidden_size"]))
    return {"texts": texts.astype(np.float32), "projection": projection.astype(np.float32)}


def arrays(case: int, width: int = 640, *, alike: bool = False) -> dict[str, np.ndarray]:
    """What methods that are compared on arrays get: one image's tokens, and what is known of them, float32.

    `alike`: tokens of one kind, and all but one equally relevant but for little: gains that are close to each other.
    """
    rng = draw("arrays", case)
    values = rng.standard_normal((PATCHES, width)) * np.exp((1 - alike) * 0.5 * rng.standard_normal((PATCHES, 1)))
    spectrum = np.arange(1, width + 1) ** (-0.5 * (1 - alike))
    keys, query = rng.standard_normal((PATCHES, 48)) + rng.standard_normal(48), rng.standard_normal(48)
    if alike:
        keys = np.concatenate([query[None], keys[1:] - 10 * query])
    dealt = np.exp(keys @ query * 48**-0.5)  # the class token's own key is zero
    made = {"values": values * spectrum, "keys": keys, "query": query, "attention": dealt / (1 + dealt.sum())}
    made["relevance"] = -(keys @ query) / np.linalg.norm(keys, axis=1) / np.linalg.norm(query)
    return {name: array.astype(np.float32) for name, array in made.items()}


def video(case: int, width: int = 48) -> dict[str, np.ndarray]:
    """A clip's tokens [N, D], at length 1: a scene of which some places move, and one frame that stands out."""
    rng = draw("video", case)
    frames, places = 8, PATCHES // 8
    moving = 0.3 * np.exp(rng.standard_normal((frames, places, 1)))
    steps = np.cumsum(moving * rng.standard_normal((frames, places, width)), axis=0)
    values = rng.standard_normal((places, width)) + 2 * rng.standard_normal(width) + steps
    values[rng.integers(2, frames)] = rng.standard_normal((places, width))
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return {"values": values.reshape(PATCHES, width).astype(np.float32)}
