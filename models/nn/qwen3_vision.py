"""Qwen3-VL's vision tower (arXiv 2511.21631) in Flax NNX, as far as it is not Qwen2.5-VL's.

Every block sees whole frames, patches learn where they stand, and blocks on the way give visual tokens too (DeepStack).

Axis letters: F frames, W windows of a frame (units here), U units of a window (one), P patches of a unit, D width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import Fields
from models.nn.clip import Mlp
from models.nn.linear import Linear
from models.nn.qwen_vision import NORM_EPS, Block, Frames, Merger, QwenTowerConfig, QwenVisionTower, read_tower


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VisionConfig(QwenTowerConfig):
    """Qwen3-VL's.

    Attributes:
      position_side: side of the square of learned position embeddings.
      deepstack_blocks: blocks whose output becomes visual tokens too, ascending; those of the first are added to hidden
        states behind decoder layer 0, and so on.
    """

    position_side: int
    deepstack_blocks: tuple[int, ...]


def qwen3_vision_config(hf: Any) -> Qwen3VisionConfig:
    """From transformers' `Qwen3VLVisionConfig`; ConfigError with all that is unsupported."""
    read = Fields(hf, "vision_config.")
    common = read_tower(read)
    depth, positions = common["num_layers"], read.whole("num_position_embeddings", 1, 2**20)
    if math.isqrt(positions) ** 2 != positions:
        read.wrong("num_position_embeddings", positions, "expected a square number")
    blocks = read.wholes("deepstack_visual_indexes", 0, depth - 1)
    if list(blocks) != sorted(set(blocks)):
        read.wrong("deepstack_visual_indexes", blocks, "expected each block once, ascending")
    read.check()
    return Qwen3VisionConfig(
        **common,
        window_units=1,
        full_blocks=tuple(range(depth)),
        position_side=math.isqrt(positions),
        deepstack_blocks=blocks,
    )


def _layer_norm(width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=NORM_EPS, param_dtype=dtype, use_fast_variance=False, rngs=rngs)


class Qwen3Block(Block):
    """One pre-norm transformer block, its norms and MLP without a gate as in CLIP's tower."""

    norm = staticmethod(_layer_norm)

    @staticmethod
    def feed_forward(config: QwenTowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Mlp:
        """The MLP."""
        widths, activation = (config.hidden_size, config.intermediate_size), config.activation
        return Mlp(*widths, activation=activation, dtype=dtype, rngs=rngs)


class Qwen3VisionTower(QwenVisionTower):
    """Frames to hidden states of patches. Random weights until a checkpoint is loaded."""

    config: Qwen3VisionConfig

    def __init__(self, config: Qwen3VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.patch_embedding = Linear(config.patch_width, config.hidden_size, use_bias=True, dtype=dtype, rngs=rngs)
        shape = (config.position_side**2, config.hidden_size)
        self.position_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))
        self.layers = nnx.List([Qwen3Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])

    def embed(self, frames: Frames) -> jax.Array:
        """Patches with their position embeddings, [F, W, U, P, D]: the learned square is stretched over each frame.

        Its corners lie on those of the frame, and between four of it a patch has their bilinear mean, in float32.
        """
        x, side = super().embed(frames), self.config.position_side
        patches = self.patch_places(frames.places)
        last = jnp.where(frames.inside[..., None, None], patches, 0).max((1, 2, 3), keepdims=True)
        at = (patches * (side - 1)).astype(jnp.float32) / jnp.maximum(last, 1).astype(jnp.float32)
        before = jnp.minimum(jnp.floor(at), side - 1)
        beyond = at - before
        total = jnp.zeros(x.shape, jnp.float32)
        for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
            row, column = jnp.moveaxis(jnp.minimum(before.astype(jnp.int32) + jnp.array(corner), side - 1), -1, 0)
            share = jnp.where(jnp.array(corner, bool), beyond, 1 - beyond).prod(-1, keepdims=True)
            total += share * jnp.take(self.position_embedding[...], row * side + column, axis=0).astype(jnp.float32)
        return x + total.astype(x.dtype)


def merger(config: QwenTowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Merger:
    """Of what the tower gives at last; the norm is of each patch."""
    return Merger(config, _layer_norm(config.hidden_size, dtype, rngs), dtype=dtype, rngs=rngs)


def deepstack_merger(config: QwenTowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Merger:
    """Of what a block on the way gives; the norm is of all patches of a unit together."""
    norm = _layer_norm(config.hidden_size * config.merge_size**2, dtype, rngs)
    return Merger(config, norm, dtype=dtype, rngs=rngs)
