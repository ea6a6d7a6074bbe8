"""A LLaVA of odd sizes with random weights, for tests that need a model but no checkpoint."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.families.llava import LlavaConfig
from models.io.table import abstract_model
from models.llava import Llava, LlavaNext, LlavaNextConfig
from models.nn.clip_config import VisionConfig
from models.nn.llama_config import TextConfig

IMAGE_TOKEN = 7
PATCHES = 25

CONFIG = LlavaConfig(
    vision=VisionConfig(
        hidden_size=24,
        intermediate_size=44,
        num_layers=3,
        num_heads=3,
        num_channels=3,
        image_size=30,
        patch_size=6,
        activation="quick_gelu",
        layer_norm_eps=2e-3,
    ),
    text=TextConfig(
        vocab_size=101,
        hidden_size=40,
        intermediate_size=52,
        num_layers=5,
        num_heads=6,
        num_kv_heads=2,
        head_dim=10,
        activation="silu",
        rms_norm_eps=3e-4,
        rope_theta=777.0,
        rope_factor=1.0,
        rope_sections=(5,),
        rope_interleaved=False,
        attention_bias=True,
        output_bias=True,
        head_norms=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        sliding_window=None,
        max_positions=4096,
    ),
    image_token_id=IMAGE_TOKEN,
    feature_layers=(2,),
    keep_class_token=False,
    projector_activation="gelu",
    projector_bias=True,
    eos_token_ids=(),
    pad_token_id=3,
)


def make_llava(
    seed: int = 0, *, config: LlavaConfig = CONFIG, dtype: jnp.dtype = jnp.float32, **text_overrides: object
) -> Llava:
    """Random weights, large enough that every part of the model moves the logits; the same in every dtype."""
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, **text_overrides))
    family = LlavaNext if isinstance(config, LlavaNextConfig) else Llava
    # Shapes alone: the initialisers would be compiled one by one.
    graph, state = nnx.split(abstract_model(lambda rngs: family(config, dtype=dtype, rngs=rngs)))
    rng = np.random.default_rng(seed)
    weights = {
        path: variable.replace(jnp.asarray(rng.normal(path[-1] == "scale", 0.2, variable.shape), dtype))
        for path, variable in nnx.to_flat_state(state)
    }
    return nnx.merge(graph, nnx.from_flat_state(weights))


def make_inputs(seed: int = 0, texts: tuple[int, ...] = (9, 4), images: tuple[int, ...] = (1, 1), side: str = "left"):
    """Prompts with that many text tokens and images per row: input_ids, pixel_values, attention_mask."""
    rng = np.random.default_rng(seed)
    rows = []
    for text, count in zip(texts, images, strict=True):
        words = rng.integers(8, 101, text)
        row, rest = list(words[:2]), words[2:]
        for _ in range(count):
            row += [IMAGE_TOKEN] * PATCHES + [int(rng.integers(8, 101))]
        rows.append(row + list(rest))
    size = max(map(len, rows))
    ids, mask = np.full((len(rows), size), 3), np.zeros((len(rows), size), int)
    for i, row in enumerate(rows):
        where = slice(size - len(row), None) if side == "left" else slice(len(row))
        ids[i, where], mask[i, where] = row, 1
    pixels = rng.normal(size=(sum(images), 3, 30, 30)).astype(np.float32)
    return ids, pixels if sum(images) else None, mask
