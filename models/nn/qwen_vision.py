"""Qwen2.5-VL's vision tower (arXiv 2502.13923) in Flax NNX: frames of any size, most blocks within windows.

`models.nn.qwen3_vision` has what is different in Qwen3-VL's.

Four neighbouring patches (`merge_size` squared) become one visual token, a unit. A frame is laid out by windows of
units, all as large as each other, with holes where its border cuts a window: shapes depend on how many there are.

Axis letters: F frames, W windows of a frame, U units of a window, P patches of a unit, D width, H heads, d head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import MAX_LAYERS, Fields
from models.nn.attention import attend
from models.nn.linear import ACTIVATIONS, Linear
from models.nn.llama import Mlp
from models.nn.rotary import Rotation, rotate, rotation

NORM_EPS = 1e-6  # transformers' constant, in no config


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenTowerConfig:
    """A tower and its merger, what Qwen2.5-VL and Qwen3-VL have in common.

    Attributes:
      hidden_size: D.
      intermediate_size: of the MLPs.
      num_layers: blocks.
      num_heads: H; D / H is a multiple of 4, for rotary embedding of rows and columns.
      num_channels: of images.
      patch_size: side of a patch in pixels.
      temporal_patch_size: images in a frame; a still image is there as often.
      merge_size: side of a unit in patches.
      window_units: side of a window in units.
      full_blocks: blocks whose attention is over the whole frame.
      activation: of the MLPs.
      rope_theta: base of the wavelengths.
      out_hidden_size: width of visual tokens.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    window_units: int
    full_blocks: tuple[int, ...]
    activation: str
    rope_theta: float
    out_hidden_size: int

    @property
    def patch_width(self) -> int:
        """Numbers of a patch."""
        return self.num_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def entry(self) -> tuple[int, int]:
        """Numbers of one entry of `pixel_values`, a patch, and what the tower makes of it: tokens."""
        return self.patch_width, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenVisionConfig(QwenTowerConfig):
    """Qwen2.5-VL's.

    Attributes:
      tokens_per_second: of video, by which positions in time go.
    """

    tokens_per_second: int


def qwen_vision_config(hf: Any) -> QwenVisionConfig:
    """From transformers' `Qwen2_5_VLVisionConfig`; ConfigError with all that is unsupported."""
    read = Fields(hf, "vision_config.")
    common = read_tower(read)
    unit = common["patch_size"] * common["merge_size"]
    config = QwenVisionConfig(
        **common,
        window_units=read.whole("window_size", unit, 2**13) // unit,
        full_blocks=read.wholes("fullatt_block_indexes", 0, common["num_layers"] - 1),
        tokens_per_second=read.whole("tokens_per_second", 1, 2**10),
    )
    read.check()
    return config


def read_tower(read: Fields) -> dict[str, Any]:
    """Fields of `QwenTowerConfig` that have the same name in all configs; problems are noted in `read`."""
    rope = Fields(read.get("rope_parameters") or {}, "vision_config.rope_parameters.")
    if rope.get("rope_type") != "axial":
        rope.wrong("rope_type", rope.get("rope_type"), "supported is 'axial'")
    width, heads = read.whole("hidden_size", 1, 2**16), read.whole("num_heads", 1, 2**10)
    if not read.problems and (width % heads or width // heads % 4):
        read.wrong("num_heads", heads, f"expected to divide {width} into heads with a multiple of 4")
    common = {
        "hidden_size": width,
        "intermediate_size": read.whole("intermediate_size", 1, 2**18),
        "num_layers": read.whole("depth", 1, MAX_LAYERS),
        "num_heads": heads,
        "num_channels": read.whole("in_channels", 1, 16),
        "patch_size": read.whole("patch_size", 1, 2**10),
        "temporal_patch_size": read.whole("temporal_patch_size", 1, 16),
        "merge_size": read.whole("spatial_merge_size", 1, 16),
        "activation": read.one_of("hidden_act", ACTIVATIONS),
        "rope_theta": rope.number("rope_theta", 1, 1e12),
        "out_hidden_size": read.whole("out_hidden_size", 1, 2**17),
    }
    read.problems += rope.problems
    return common


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames by windows. A pytree.

    Attributes:
      patches: [F, W, U, P, C * t * p * p], as the processor gives each.
      inside: [F, W, U] bool, False for holes.
      places: [F, W, U, 2] int32, row and column of each unit in its frame.
    """

    patches: Any
    inside: Any
    places: Any


class Qkv(nnx.Module):
    """Queries, keys and values in one matrix [3, D, D], so that each can be split by heads."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        by_fan_in = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=0)
        self.weight = nnx.Param(by_fan_in(rngs.params(), (3, width, width), dtype))
        self.bias = nnx.Param(jnp.zeros((3, width), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[F, S, D] -> [3, F, S, D]."""
        return jnp.einsum("fsi,coi->cfso", x, self.weight[...]) + self.bias[...][:, None, None]


def rms_norm(width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """The norm of this tower."""
    return nnx.RMSNorm(width, epsilon=NORM_EPS, param_dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """One pre-norm transformer block; subclasses may have other norms and another MLP."""

    norm = staticmethod(rms_norm)

    @staticmethod
    def feed_forward(config: QwenTowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Any:
        """The MLP, here with a gate."""
        widths, activation = (config.hidden_size, config.intermediate_size), config.activation
        return Mlp(*widths, activation=activation, use_bias=True, dtype=dtype, rngs=rngs)

    def __init__(self, config: QwenTowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.norm1 = self.norm(width, dtype, rngs)
        self.qkv = Qkv(width, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)
        self.norm2 = self.norm(width, dtype, rngs)
        self.mlp = self.feed_forward(config, dtype=dtype, rngs=rngs)

    def heads(self, x: jax.Array, at: Rotation) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[F, S, D] -> rotated queries and keys, and values, each [F, S, H, d]."""
        query, key, value = self.qkv(self.norm1(x)).reshape(3, *x.shape[:2], self.num_heads, -1)
        return rotate(query, at), rotate(key, at), value

    def __call__(self, x: jax.Array, at: Rotation, inside: jax.Array) -> jax.Array:
        """Patches [F, S, D] that see all of those of their set that are `inside`, [F * sets, S / sets] bool."""
        query, key, value = (part.reshape(*inside.shape, *part.shape[2:]) for part in self.heads(x, at))
        seen = attend(query, key, value, mask=inside[:, None])
        x = x + self.out_proj(seen.reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class QwenVisionTower(nnx.Module):
    """Frames to hidden states of patches. Random weights until a checkpoint is loaded."""

    def __init__(self, config: QwenTowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.patch_embedding = Linear(config.patch_width, config.hidden_size, use_bias=False, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])

    def patch_places(self, places: jax.Array) -> jax.Array:
        """Rows and columns [F, W, U, P, 2] of the patches of units at `places` [F, W, U, 2]."""
        side = self.config.merge_size
        within = jnp.stack(jnp.divmod(jnp.arange(side**2, dtype=jnp.int32), side), axis=-1)
        return places[..., None, :] * side + within

    def rotation(self, places: jax.Array) -> Rotation:
        """Angles [F, W * U * P, d/2] of the patches of units at `places` [F, W, U, 2]: rows, then columns."""
        config, at = self.config, self.patch_places(places).reshape(len(places), -1, 2)
        width = config.hidden_size // config.num_heads // 2
        row, column = (
            rotation(
                at[..., axis, None],
                head_dim=width,
                theta=config.rope_theta,
                factor=1.0,
                sections=(width // 2,),
                interleaved=False,
            )
            for axis in (0, 1)
        )
        cosine, sine = (jnp.concatenate(pair, axis=-1) for pair in zip(row, column, strict=True))
        return cosine, sine

    def embed(self, frames: Frames) -> jax.Array:
        """Patches as they enter the first block, [F, W, U, P, D] in the weights' dtype."""
        return self.patch_embedding(frames.patches.astype(self.patch_embedding.weight[...].dtype))

    def __call__(self, frames: Frames, *, reads: Collection[str] = ()) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """Hidden states of patches behind each block, and evidence about units; those of holes mean nothing.

        Evidence is of the last block that attends to whole frames, the mean over a unit's patches. There is no class
        token: in its place stands the attention that a patch receives from all patches of its frame.

        Args:
          frames: by windows.
          reads: any of "class_attention" and "global_attention", which are the same here: [F, W, U] float32, softmax,
            the sum over the patches that attend, mean over heads; and "tower_keys" [F, W, U, d], rotated, mean over
            heads. "tower_features" are what comes out of the last block.

        Returns:
          Of each block a unit's patches side by side, [F, W, U, P * D]; and the evidence by name.
        """
        config, x = self.config, self.embed(frames)
        shape, at = x.shape, self.rotation(frames.places)
        x = x.reshape(len(x), -1, config.hidden_size)
        inside = jnp.repeat(frames.inside, config.merge_size**2, axis=2)
        by_window, whole = inside.reshape(-1, inside.shape[2]), inside.reshape(len(x), -1)
        states, found = list[jax.Array](), dict[str, jax.Array]()
        for index, block in enumerate(self.layers):
            if index == max(config.full_blocks) and set(reads) & {*_ATTENTION, "tower_keys"}:
                query, key, _ = block.heads(x, at)
                received = _received(query, key, whole) if set(reads) & set(_ATTENTION) else None
                found = {name: received for name in _ATTENTION if received is not None} | {"tower_keys": key.mean(2)}
                found = {name: _by_unit(array, shape) for name, array in found.items() if name in reads}
            x = block(x, at, whole if index in config.full_blocks else by_window)
            states.append(x.reshape(*shape[:3], -1))
        if "tower_features" in reads:
            found["tower_features"] = states[-1]
        return states, found


_ATTENTION = ("class_attention", "global_attention")


def _by_unit(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Of patches, [F, S, ...], as means over units, [F, W, U, ...]."""
    return array.reshape(*shape[:4], *array.shape[2:]).mean(3)


def _received(query: jax.Array, key: jax.Array, inside: jax.Array) -> jax.Array:
    """Attention [F, S] of all queries [F, S, H, d] to each key, of those `inside` [F, S]; one head's map at a time."""

    def add(total: jax.Array, head: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        asks, answers = (part.astype(jnp.float32) for part in head)
        logits = jnp.einsum("fqd,fkd->fqk", asks, answers, precision=jax.lax.Precision.HIGHEST)
        logits = jnp.where(inside[:, None], logits * query.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
        return total + jnp.where(inside[..., None], jax.nn.softmax(logits, axis=-1), 0).sum(1), None

    heads = jnp.moveaxis(query, 2, 0), jnp.moveaxis(key, 2, 0)
    total, _ = jax.lax.scan(add, jnp.zeros(key.shape[:2], jnp.float32), heads)
    return total / query.shape[2]


class Merger(nnx.Module):
    """Patches of a unit to one visual token. A norm as wide as several patches is of them together."""

    def __init__(self, config: QwenTowerConfig, norm: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.hidden_size * config.merge_size**2
        self.norm = norm
        self.linear_1 = Linear(width, width, use_bias=True, dtype=dtype, rngs=rngs)
        self.linear_2 = Linear(width, config.out_hidden_size, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Patches of units side by side, [..., P * D] -> [..., width of visual tokens]."""
        normed = self.norm(x.reshape(*x.shape[:-1], -1, self.norm.num_features)).reshape(x.shape)
        return self.linear_2(jax.nn.gelu(self.linear_1(normed), approximate=False))
