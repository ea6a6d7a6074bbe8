"""Tiny random LLaVA checkpoints, made by transformers and written in every spelling that is in use.

No number here is a default of transformers or divides another by accident, and no weight is near its initial value
(norms near one, biases at zero), so that a constant that is not read or a weight that is not loaded shows.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx
from safetensors.torch import save_file

from models.auto import family_of
from models.io.export import export_weights
from models.io.table import abstract_model, load_weights
from models.llava import Llava, LlavaConfig

torch.set_num_threads(1)  # more would only wait for each other in models this small

VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 52,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 30,
    "patch_size": 6,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 2e-3,
}
TEXT: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 42,
    "intermediate_size": 70,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,  # and not 42 / 6
    "rms_norm_eps": 3e-4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
    "eos_token_id": None,  # nothing stops a generation
    "bos_token_id": 1,
    "pad_token_id": 0,
}
IMAGE = 97  # the placeholder
PATCHES = 25
LAYOUTS = ("published", "transformers", "memory")


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights at which every layer, norm and bias has a say in the logits, and the logits differ by whole numbers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * scale

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if re.search(r"(norm\w*|layrnorm)\.weight$", name):
                weight.copy_(1 + normal(weight, 0.3))
            elif name.endswith("bias"):
                weight.copy_(normal(weight, 0.3))
            elif "embed" in name and weight.ndim < 4:
                weight.copy_(normal(weight, 1.0))
            else:
                weight.copy_(normal(weight, (2.0 if "lm_head" in name else 1.0) / weight[0].numel() ** 0.5))


def build(
    *,
    seed: int = 0,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    text_class: Any = transformers.LlamaConfig,
    **llava: Any,
) -> transformers.LlavaForConditionalGeneration:
    """A random model; `vision`, `text` and the rest override the constants above."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**(VISION | (vision or {}))),
        text_config=text_class(**(TEXT | (text or {}))),
        **({"image_token_index": IMAGE, "image_seq_length": PATCHES} | llava),
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    randomise(model, seed)
    return model


def spell(key: str, layout: str) -> str:
    """A key of transformers' memory in one of `LAYOUTS`."""
    if layout == "memory":
        return key
    key = re.sub(r"^lm_head\.", "language_model.lm_head.", key)
    key = re.sub(r"^model\.language_model\.", "language_model.model.", key)
    key = re.sub(r"^model\.", "", key)
    return re.sub(r"^vision_tower\.", "vision_tower.vision_model.", key) if layout == "published" else key


def tensors(model: torch.nn.Module, layout: str = "published") -> dict[str, torch.Tensor]:
    """Weights by key; a tied head is left out, as `save_pretrained` does."""
    tied = model.config.tie_word_embeddings
    state = {key: value for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")}
    return {spell(key, layout): value.clone().contiguous() for key, value in state.items()}


def write(folder: Path, weights: dict[str, torch.Tensor], *, shards: int = 1) -> None:
    """One file, or `shards` files and their index."""
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {key: names[i % shards] for i, key in enumerate(sorted(weights))}
    for name in names:
        part = {key: weights[key] for key, where in weight_map.items() if where == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    size = sum(value.numel() * value.element_size() for value in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_llava(
    folder: Path, *, layout: str = "published", shards: int = 1, old_buffers: bool = False, **overrides: Any
) -> transformers.LlavaForConditionalGeneration:
    """Build a model and save it as a checkpoint.

    Args:
      folder: made if needed.
      layout: one of `LAYOUTS`.
      shards: number of files.
      old_buffers: add the buffers that old files carry.
      **overrides: see `build`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build(**overrides)
    model.config.save_pretrained(folder)
    weights = tensors(model, layout)
    if old_buffers:
        weights |= buffers(model)
    write(folder, weights, shards=shards)
    return model


def buffers(model: transformers.LlavaForConditionalGeneration) -> dict[str, torch.Tensor]:
    """What files of early versions hold besides weights, in the published spelling."""
    half = model.config.text_config.head_dim // 2
    layers = range(model.config.text_config.num_hidden_layers)
    return {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(PATCHES + 1)[None],
        **{f"language_model.model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(half) for i in layers},
    }


SMALL: dict[str, Any] = {
    "vision": {"num_hidden_layers": 1},
    "text": {"num_hidden_layers": 1},
    "vision_feature_layer": -1,
}
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


@functools.cache
def small() -> transformers.LlavaForConditionalGeneration:
    """The smallest model that has every kind of weight. Shared: do not change it."""
    return build(**SMALL)


def save_small(folder: Path, *, layout: str = "published", shards: int = 1, **changes: torch.Tensor | None) -> Path:
    """Save `small()` with some weights replaced, added or (None) left out."""
    small().config.save_pretrained(folder)
    weights = tensors(small(), layout) | changes
    write(folder, {key: value for key, value in weights.items() if value is not None}, shards=shards)
    return folder


def abstract(config: LlavaConfig, dtype: Any = jnp.float32, *, family: type[Llava] = Llava) -> Llava:
    """Shapes without weights."""
    return abstract_model(lambda rngs: family(config, dtype=dtype, rngs=rngs))


def load(folder: Path, dtype: Any = jnp.float32, **options: Any) -> nnx.Module:
    """What `Llava.from_pretrained` does to a local folder, with `load_weights`'s options."""
    family, config = family_of(folder)
    return load_weights(abstract(config, dtype, family=family), folder, family.table(config), dtype=dtype, **options)


def exported(model: nnx.Module) -> dict[str, np.ndarray]:
    """Weights by their published keys."""
    return export_weights(model, type(model).table(model.config))


def published() -> dict[str, np.ndarray]:
    """Those of `small()`."""
    return {key: value.numpy() for key, value in tensors(small()).items()}


def assert_same_bits(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    chex.assert_trees_all_equal_dtypes(got, want)
    chex.assert_trees_all_equal_shapes(got, want)
    assert {key for key in want if got[key].tobytes() != want[key].tobytes()} == set()


def edit(path: Path, change: Any) -> None:
    """Replace a JSON file by what `change` makes of it; dicts of dicts are merged."""
    content = json.loads(path.read_text())
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))
