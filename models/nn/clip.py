"""CLIP's vision tower (arXiv 2103.00020) in Flax NNX, with the attribute names of Hugging Face's `CLIPVisionModel`.

Axis letters: B images, N patches, D width, H heads, d head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.nn.attention import attend, log_sizes
from models.nn.clip_config import EncoderConfig, VisionConfig
from models.nn.linear import ACTIVATIONS, Linear
from models.nn.tower_reads import READS
from tokencarve_jax import Compressed, Tokens
from tokencarve_jax.tokens import rows


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cut images into flattened patches, in raster order.

    Args:
      images: [B, C, height, width]; rows and columns beyond a multiple of `patch_size` are left out.
      patch_size: p, in pixels.

    Returns:
      [B, height // p * (width // p), C * p * p]; within a patch channel first, then row, then column.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    images = images[:, :, : rows * patch_size, : columns * patch_size]
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


class Attention(nnx.Module):
    """Full self-attention with biases."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.q_proj = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, N, D] -> queries, keys and values, each [B, N, H, d]."""
        shape = (*x.shape[:2], self.num_heads, -1)
        query, key, value = (proj(x).reshape(shape) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return query, key, value


class Mlp(nnx.Module):
    """Two linear layers."""

    def __init__(self, width: int, inner: int, *, activation: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = activation
        self.fc1 = Linear(width, inner, use_bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(inner, width, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


def layer_norm(config: EncoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """The norm of CLIP's towers."""
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, param_dtype=dtype, use_fast_variance=False, rngs=rngs
    )


class EncoderLayer(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layer_norm1 = layer_norm(config, dtype, rngs)
        self.self_attn = Attention(config, dtype=dtype, rngs=rngs)
        self.layer_norm2 = layer_norm(config, dtype, rngs)
        self.mlp = Mlp(
            config.hidden_size, config.intermediate_size, activation=config.activation, dtype=dtype, rngs=rngs
        )

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, N, D] -> queries, keys and values of the block, each [B, N, H, d]."""
        return self.self_attn.heads(self.layer_norm1(x))

    def finish(self, x: jax.Array) -> jax.Array:
        """The MLP and its residual: [B, N, D] -> [B, N, D]."""
        return x + self.mlp(self.layer_norm2(x))


@dataclasses.dataclass(frozen=True)
class BlockCut:
    """Merging in every block, between attention and MLP.

    Attributes:
      shorten: `shorten(tokens, keep, keys)`, with head-mean keys [B, N, d] of the block.
      counts: tokens left after each block, without the class token.
    """

    shorten: Callable[[Tokens, int, jax.Array], Compressed]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TowerOutput:
    """The output of a tower.

    Attributes:
      features: [B, 1 + N, D * feature layers], the class token first, then the N that are left.
      evidence: by (name, block): "class_attention" [B, 1 + N] (softmax over all tokens, mean over heads),
        "global_attention" [B, 1 + N] (the same of all tokens, mean over queries too) and "tower_keys" [B, 1 + N, d]
        (mean over heads).
      merged: the survivors of merging, with `indices` among all patches; None without a cut.
    """

    features: jax.Array
    evidence: dict[tuple[str, int], jax.Array]
    merged: Compressed | None


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
        self.pre_layernorm = layer_norm(config, dtype, rngs)
        self.layers = nnx.List([EncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.post_layernorm = layer_norm(config, dtype, rngs)

    def embed(self, patches: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """Class token and patches [B, N, C * p * p] with their position embeddings: [B, 1 + N, D].

        `positions` [B, N] int32 are places in the raster; None for the whole raster.
        """
        table = self.position_embedding[...]
        x = self.patch_embedding(patches.astype(table.dtype))
        x = x + (table[None, 1:] if positions is None else jnp.take(table[1:], positions, axis=0))
        class_token = jnp.broadcast_to(self.class_embedding[...] + table[0], (x.shape[0], 1, x.shape[2]))
        return self.pre_layernorm(jnp.concatenate([class_token, x], axis=1))

    def encode(
        self,
        x: jax.Array,
        *,
        feature_layers: tuple[int, ...],
        reads: Sequence[tuple[str, int]] = (),
        cut: BlockCut | None = None,
        kernel: str = "blocks",
    ) -> TowerOutput:
        """Run the layers that are needed, and no deeper one.

        Args:
          x: [B, 1 + N, D], from `embed`.
          feature_layers: 0 is the embedding's output, i the output of block i - 1.
          reads: evidence to record, by name and block.
          cut: how tokens merge on the way; with one feature layer only.
          kernel: of `attend`.
        """
        states, evidence = {0: x}, dict[tuple[str, int], jax.Array]()
        batch = x.shape[0]
        left: Compressed | None = None
        last = max(feature_layers)
        for index in range(max([last, *(block + 1 for _, block in reads)])):
            layer = self.layers[index]
            query, key, value = layer.heads(x)
            sizes = None
            if left is not None:
                sizes = jnp.concatenate([jnp.ones((batch, 1)), left.tokens.sizes], axis=1)
            for name, block in reads:
                if block == index:
                    evidence[name, block] = READS[name](query, key)
            if index >= last:
                continue  # only its attention is read
            x = x + layer.self_attn.out_proj(attend(query, key, value, bias=log_sizes(sizes), kernel=kernel))
            if cut is not None:
                tokens = Tokens.of(x[:, 1:]) if left is None else dataclasses.replace(left.tokens, values=x[:, 1:])
                new = cut.shorten(tokens, cut.counts[index], key[:, 1:].mean(2))
                x = jnp.concatenate([x[:, :1], new.tokens.values], axis=1)
                moved = jnp.concatenate([jnp.zeros((batch, 1), jnp.int32), 1 + new.indices], axis=1)
                evidence = {what: rows(array, moved) for what, array in evidence.items()}
                left = new if left is None else _after(left, new)
            x = layer.finish(x)
            states[index + 1] = x
        return TowerOutput(jnp.concatenate([states[layer] for layer in feature_layers], axis=-1), evidence, left)

    def __call__(self, images: jax.Array, *, feature_layers: tuple[int, ...], **options: Any) -> TowerOutput:
        """`encode` for whole images [B, C, image_size, image_size], normalised as the checkpoint's processor does."""
        patches = self.embed(patchify(images, self.config.patch_size))
        return self.encode(patches, feature_layers=feature_layers, **options)


def _after(first: Compressed, second: Compressed) -> Compressed:
    """Two cuts as one."""
    row = jnp.take_along_axis(second.assignment, jnp.maximum(first.assignment, 0), axis=-1)
    assignment = jnp.where(first.assignment < 0, -1, row)
    return Compressed(second.tokens, rows(first.indices, second.indices), assignment)
