"""Qwen2.5-VL (arXiv 2502.13923): images and video of any size, positions in time, row and column (M-RoPE).

`models.families.qwen3_vl` has what is different in Qwen3-VL.

Axis letters: B batch, S sequence, F frames, W windows, U units of a window, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.config import Fields, special_tokens
from models.engine.model import VisionLanguageModel
from models.engine.prompt import Prompt, in_order, make_prompt
from models.engine.relevance import RELEVANCE
from models.engine.visual import TowerRequest, View, Visual
from models.errors import ConfigError
from models.families.qwen_media import Media, lay_out, rotary_positions, views_of
from models.families.tables import decoder_table, qwen_vision_table
from models.io.table import Table
from models.nn.llama import Decoder
from models.nn.llama_config import TextConfig, text_config
from models.nn.qwen_vision import Frames, Merger, QwenTowerConfig, QwenVisionTower, qwen_vision_config, rms_norm
from tokencarve_jax import EVIDENCE


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    """Tower, merger and decoder of a Qwen2.5-VL or Qwen3-VL.

    Attributes:
      vision: the tower and its merger, a `QwenTowerConfig`.
      text: the decoder.
      image_token_id: the placeholder, once per visual token of an image.
      video_token_id: the same for video.
      eos_token_ids: generation stops at any of them.
      pad_token_id: fills rows that have ended.
    """

    vision: Any
    text: TextConfig
    image_token_id: int
    video_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of the smallest image."""
        return 1


class Qwen25VL(VisionLanguageModel):
    """A Qwen2.5-VL model; `models.from_pretrained` loads one with weights.

    Args:
      config: all architecture constants.
      dtype: of weights and of hidden states; norms, rotary embedding, softmax and logits are float32 throughout.
      rngs: for the random initialisation.
    """

    model_type = "qwen2_5_vl"
    square = False
    evidence = frozenset(EVIDENCE) - {"middle_attention", *RELEVANCE}  # few blocks see whole frames; no CLIP

    def __init__(self, config: QwenVLConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.mesh = None
        self.target = None
        self.vision_tower = QwenVisionTower(config.vision, dtype=dtype, rngs=rngs)
        norm = rms_norm(config.vision.hidden_size, dtype, rngs)
        self.projector = Merger(config.vision, norm, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config.text, dtype=dtype, rngs=rngs)

    @staticmethod
    def read_vision(hf: Any) -> QwenTowerConfig:
        """The tower's constants, from transformers' config of it; ConfigError with all that is unsupported."""
        return qwen_vision_config(hf)

    @classmethod
    def read_config(cls, hf: Any, generation: Mapping[str, Any]) -> QwenVLConfig:
        """From transformers' config of the family; ConfigError with everything that is not supported."""
        read, parts = Fields(hf), list[Any]()
        for read_part, part in ((cls.read_vision, hf.vision_config), (text_config, hf.text_config)):
            try:
                parts.append(read_part(part))
            except ConfigError as error:
                read.problems += error.problems
        read.check()
        vision, text = parts
        if vision.out_hidden_size != text.hidden_size:
            Fields.wrong(read, "vision_config.out_hidden_size", vision.out_hidden_size, f"expected {text.hidden_size}")
        tied = read.flag("tie_word_embeddings") or text.tie_word_embeddings
        eos_ids, pad = special_tokens(hf, generation, text.vocab_size, read)
        config = QwenVLConfig(
            vision=vision,
            text=dataclasses.replace(text, tie_word_embeddings=tied),
            image_token_id=read.whole("image_token_id", 0, text.vocab_size - 1),
            video_token_id=read.whole("video_token_id", 0, text.vocab_size - 1),
            eos_token_ids=eos_ids,
            pad_token_id=pad,
        )
        read.check()
        return config

    @staticmethod
    def table(config: QwenVLConfig) -> Table:
        """Tower, merger and decoder."""
        return [*qwen_vision_table(config.vision), *decoder_table(config.text, spelling="qwen2")]

    def pack(
        self,
        input_ids: Any,
        pixel_values: Any,
        attention_mask: Any,
        *,
        per_image: bool,
        bucket: int,
        image_grid_thw: Any = None,
        pixel_values_videos: Any = None,
        video_grid_thw: Any = None,
        second_per_grid_ts: Any = None,
        mm_token_type_ids: Any = None,
        **unknown: Any,
    ) -> Prompt:
        """See `make_prompt`; inputs by the processor's names.

        Args:
          input_ids: [B, S].
          pixel_values: [patches of all images, C * t * p * p].
          attention_mask: [B, S].
          per_image: as for `make_prompt`.
          bucket: as for `make_prompt`.
          image_grid_thw: [images, 3], frames (1), rows and columns of patches.
          pixel_values_videos: [patches of all videos, C * t * p * p].
          video_grid_thw: [videos, 3], the same.
          second_per_grid_ts: [videos], seconds between two frames; None means 1.
          mm_token_type_ids: not read: the ids say which tokens are placeholders.
          **unknown: refused.
        """
        del mm_token_type_ids
        if unknown:
            raise TypeError(f"{self.model_type} models do not take {', '.join(unknown)}")
        config, ids = self.config, np.asarray(input_ids)
        found = self._found(ids, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw, second_per_grid_ts)
        frames, features_of = lay_out(found, config.vision)
        grids = {one.grid for one in found}
        # Placeholders are overwritten by visual tokens: which of the two stood there no longer matters.
        ids = np.where(ids == config.video_token_id, config.image_token_id, ids)
        prompt = make_prompt(
            ids,
            None,
            attention_mask,
            image_token_id=config.image_token_id,
            tokens_per_image=0,
            vocab_size=config.text.vocab_size,
            bucket=bucket,
            features_of=features_of,
            per_image=per_image,
            grid=grids.pop() if len(grids) == 1 else None,
        )
        if prompt.visual_valid.sum() != sum(one.tokens for one in found):
            raise ValueError("attention_mask leaves out placeholders of an image, which has no position without them")
        positions, following = rotary_positions(prompt, self._runs(found), config.image_token_id)
        return dataclasses.replace(prompt, pixel_values=frames, positions=positions, next_position=following)

    def views(
        self,
        input_ids: Any,
        pixel_values: Any,
        *,
        image_grid_thw: Any = None,
        pixel_values_videos: Any = None,
        video_grid_thw: Any = None,
        **inputs: Any,
    ) -> list[View]:
        """See `VisionLanguageModel.views` and `qwen_media.views_of`."""
        ids = np.asarray(input_ids)
        found = self._found(ids, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw, None)
        return views_of(found, self.config.vision)

    def _found(
        self, ids: np.ndarray, pixels: Any, grids: Any, video_pixels: Any, video_grids: Any, seconds: Any
    ) -> list[Media]:
        """Images and videos in the order of their tokens, from what `pack` takes."""
        images = self._media("pixel_values", pixels, "image_grid_thw", grids)
        videos = self._media("pixel_values_videos", video_pixels, "video_grid_thw", video_grids)
        videos = self._in_time(videos, seconds)
        return in_order(ids, {self.config.image_token_id: images, self.config.video_token_id: videos})

    def _in_time(self, videos: list[Media], seconds: Any) -> list[Media]:
        """Videos with the time between two of their frames, from `second_per_grid_ts`."""
        each = np.ones(len(videos), np.float32) if seconds is None else np.asarray(seconds, np.float32).reshape(-1)
        if len(each) != len(videos):
            raise ValueError(f"second_per_grid_ts has {len(each)} entries; expected one of {len(videos)} videos")
        scaled = self.config.vision.tokens_per_second * each
        return [dataclasses.replace(one, seconds=float(many)) for one, many in zip(videos, scaled, strict=True)]

    def _runs(self, media: list[Media]) -> list[Media]:
        """What stands in one piece, without text between: whole images and videos."""
        return media

    def _media(self, name: str, pixels: Any, grid_name: str, grids: Any) -> list[Media]:
        """The images or videos of a batch; ValueError if pixels and grids do not fit each other."""
        if pixels is None and grids is None:
            return []
        vision = self.config.vision
        side, width = vision.merge_size, vision.patch_width
        pixels, grids = np.asarray(pixels), np.asarray(grids)
        if grids.ndim != 2 or grids.shape[1] != 3 or grids.min() < 1 or (grids[:, 1:] % side).any():
            expected = f"[n, 3]: frames, rows and columns of patches, the last two multiples of {side}"
            raise ValueError(f"{grid_name} is {grids.tolist()}; expected {expected}")
        ends = np.cumsum(grids.prod(1))
        if pixels.shape != (ends[-1], width):
            raise ValueError(f"{name} has shape {pixels.shape}; {grid_name} asks for {(int(ends[-1]), width)}")
        return [
            Media(part, (int(frames), int(rows) // side, int(columns) // side), 1.0)
            for part, (frames, rows, columns) in zip(np.split(pixels, ends[:-1]), grids, strict=True)
        ]

    def visual(self, pixel_values: Frames, request: TowerRequest, key: jax.Array | None = None) -> Visual:
        """Visual tokens [F * W * U, D] of frames, in the weights' dtype, and evidence; those of holes mean nothing.

        Whatever layer a compressor reads elsewhere, evidence is of the last block that sees whole frames.
        """
        del key
        if request.cut is not None:
            raise ValueError(f"cut {request.cut}: {self.model_type} models cannot be cut in the tower; cut at 'input'")
        states, found = self.vision_tower(pixel_values, reads={name for name, _ in request.evidence})
        tokens = self.projector(states[-1])
        evidence = {what: found[what[0]].reshape(-1, *found[what[0]].shape[3:]) for what in request.evidence}
        deepstack = tuple(later.reshape(-1, later.shape[-1]) for later in self._deepstack(states))
        return Visual(tokens.reshape(-1, tokens.shape[-1]), evidence, deepstack=deepstack)

    def _deepstack(self, states: list[jax.Array]) -> list[jax.Array]:
        """Visual tokens [F, W, U, D] for behind decoder layers, from what each block of the tower gives: none."""
        del states
        return []
