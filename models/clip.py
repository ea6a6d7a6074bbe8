"""CLIP's vision tower (arXiv 2103.00020) in Flax NNX, with the attribute names of Hugging Face's `CLIPVisionModel`.

Axis letters: B images, N patches, D width, H heads, d head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import VisionConfig
from models.layers import ACTIVATIONS, Linear, attend


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cut images into flattened patches, in raster order.

    Args:
      images: [B, C, height, width], both sides multiples of `patch_size`.
      patch_size: p, in pixels.

    Returns:
      [B, height/p * width/p, C * p * p]; within a patch channel first, then row, then column.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


class Attention(nnx.Module):
    """Full self-attention with biases."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.q_proj = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        heads = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (proj(x).reshape(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v))


class Mlp(nnx.Module):
    """Two linear layers."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = config.activation
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, use_bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


def _layer_norm(config: VisionConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, param_dtype=dtype, use_fast_variance=False, rngs=rngs
    )


class EncoderLayer(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layer_norm1 = _layer_norm(config, dtype, rngs)
        self.self_attn = Attention(config, dtype=dtype, rngs=rngs)
        self.layer_norm2 = _layer_norm(config, dtype, rngs)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipVisionTower(nnx.Module):
    """Pixels to hidden states. Weights are initialised at random until a checkpoint is loaded."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,), dtype))
        self.patch_embedding = Linear(
            config.num_channels * patch * patch, width, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.position_embedding = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (config.num_patches + 1, width), dtype)
        )
        self.pre_layernorm = _layer_norm(config, dtype, rngs)
        self.layers = nnx.List([EncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.post_layernorm = _layer_norm(config, dtype, rngs)

    def embed(self, patches: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """Class token and patches with their position embeddings.

        Args:
          patches: [B, N, C * p * p] flattened patches.
          positions: [B, N] int32, where in the raster each patch stands; None where they are the whole raster.

        Returns:
          [B, 1 + N, D], the class token first.
        """
        table = self.position_embedding[...]
        x = self.patch_embedding(patches.astype(table.dtype))
        x = x + (table[1:] if positions is None else jnp.take(table[1:], positions, axis=0))
        class_token = jnp.broadcast_to(self.class_embedding[...] + table[0], (x.shape[0], 1, x.shape[2]))
        return self.pre_layernorm(jnp.concatenate([class_token, x], axis=1))

    def encode(self, x: jax.Array, *, feature_layers: tuple[int, ...]) -> jax.Array:
        """Run the layers that are asked for, and no deeper one.

        Args:
          x: [B, 1 + N, D], from `embed`.
          feature_layers: 0 is the embedding's output, i the output of layer i.

        Returns:
          [B, 1 + N, D * len(feature_layers)].
        """
        states = {0: x}
        for index in range(max(feature_layers)):
            x = self.layers[index](x)
            states[index + 1] = x
        return jnp.concatenate([states[layer] for layer in feature_layers], axis=-1)

    def __call__(self, images: jax.Array, *, feature_layers: tuple[int, ...]) -> jax.Array:
        """Hidden states of whole images.

        Args:
          images: [B, C, image_size, image_size], normalised as the checkpoint's processor does.
          feature_layers: as for `encode`.

        Returns:
          [B, 1 + N, D * len(feature_layers)], the class token first, in the weights' dtype.
        """
        return self.encode(self.embed(patchify(images, self.config.patch_size)), feature_layers=feature_layers)
