"""SigLIP's vision tower (arXiv 2303.15343) in Flax NNX: CLIP's blocks without a class token and a norm before them.

Axis letters: B images, N patches, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.errors import ConfigError
from models.nn.clip import ClipVisionTower, EncoderLayer, layer_norm
from models.nn.clip_config import VisionConfig, vision_fields
from models.nn.linear import Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipVisionConfig(VisionConfig):
    """A SigLIP vision tower. Sizes in pixels; what an image has beyond whole patches is not seen."""

    @property
    def entry(self) -> tuple[int, int]:
        """Numbers of one entry of `pixel_values`, an image or tile, and what the tower makes of it: tokens."""
        return self.num_channels * self.image_size**2, self.num_patches


def siglip_vision_config(hf: Any) -> SiglipVisionConfig:
    """From a transformers `SiglipVisionConfig`; ConfigError for another tower or wrong fields."""
    if hf.model_type != "siglip_vision_model":
        raise ConfigError(f"vision_config.model_type is {hf.model_type!r}; only 'siglip_vision_model' is supported")
    if hf.vision_use_head:
        raise ConfigError("vision_config.vision_use_head is true; supported is false: nothing reads what it pools")
    return SiglipVisionConfig(**vision_fields(hf))


class SiglipVisionTower(ClipVisionTower):
    """Pixels to hidden states; see `ClipVisionTower`, without whose first token features and evidence are [B, N, ...].

    "class_attention" is not to be had, and blocks do not merge.
    """

    def __init__(self, config: SiglipVisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = Linear(config.num_channels * patch * patch, width, use_bias=True, dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (config.num_patches, width), dtype)
        )
        self.layers = nnx.List([EncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.post_layernorm = layer_norm(config, dtype, rngs)  # in checkpoints; features are taken before it

    def embed(self, patches: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """Patches [B, N, C * p * p] with their position embeddings: [B, N, D]; `positions` as for CLIP."""
        table = self.position_embedding[...]
        x = self.patch_embedding(patches.astype(table.dtype))
        return x + (table[None] if positions is None else jnp.take(table, positions, axis=0))
