"""Qwen3-VL (arXiv 2511.21631), dense: as Qwen2.5-VL, with DeepStack and with each frame's time in the text.

Axis letters: F frames, W windows of a frame (units here), U units of a window (one), D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import Fields
from models.families.qwen2_5_vl import Qwen25VL, QwenVLConfig
from models.families.qwen_media import Media
from models.families.tables import decoder_table, qwen3_vision_table
from models.io.table import Table
from models.nn.llama import Decoder
from models.nn.qwen3_vision import Qwen3VisionConfig, Qwen3VisionTower, deepstack_merger, merger, qwen3_vision_config


class Qwen3VL(Qwen25VL):
    """A Qwen3-VL model; `models.from_pretrained` loads one with weights.

    Args: as for `Qwen25VL`.
    """

    model_type = "qwen3_vl"

    def __init__(self, config: QwenVLConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.mesh = None
        self.target = None
        vision = config.vision
        self.vision_tower = Qwen3VisionTower(vision, dtype=dtype, rngs=rngs)
        self.projector = merger(vision, dtype=dtype, rngs=rngs)
        self.deepstack = nnx.List([deepstack_merger(vision, dtype=dtype, rngs=rngs) for _ in vision.deepstack_blocks])
        self.decoder = Decoder(config.text, dtype=dtype, rngs=rngs)

    @staticmethod
    def read_vision(hf: Any) -> Qwen3VisionConfig:
        """As of `Qwen25VL`."""
        return qwen3_vision_config(hf)

    @classmethod
    def read_config(cls, hf: Any, generation: Mapping[str, Any]) -> QwenVLConfig:
        """As of `Qwen25VL`; the last decoder layer, of which only the last token is computed, adds nothing."""
        config = super().read_config(hf, generation)
        read, blocks = Fields(hf.vision_config, "vision_config."), config.vision.deepstack_blocks
        if len(blocks) >= config.text.num_layers:
            read.wrong("deepstack_visual_indexes", blocks, f"expected fewer than the {config.text.num_layers} layers")
        read.check()
        return config

    @staticmethod
    def table(config: QwenVLConfig) -> Table:
        """Tower, mergers and decoder."""
        return [*qwen3_vision_table(config.vision), *decoder_table(config.text, spelling="qwen3")]

    def _in_time(self, videos: list[Media], seconds: Any) -> list[Media]:
        """Videos as they are: their processor writes the time of each frame into the text."""
        if seconds is not None:
            raise TypeError(f"{self.model_type} models do not take second_per_grid_ts")
        return videos

    def _runs(self, media: list[Media]) -> list[Media]:
        """Frames: the text that tells the time of one stands before it."""
        return [dataclasses.replace(one, grid=(1, *one.grid[1:])) for one in media for _ in range(one.grid[0])]

    def _deepstack(self, states: list[jax.Array]) -> list[jax.Array]:
        """Visual tokens [F, W, U, D] for behind decoder layers, from what each block of the tower gives."""
        blocks = self.config.vision.deepstack_blocks
        return [merge(states[block]) for block, merge in zip(blocks, self.deepstack, strict=True)]
