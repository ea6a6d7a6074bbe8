"""Qwen2.5-VL (arXiv 2502.13923): images and video of any size, positions in time, row and column (M-RoPE).

Axis letters: B batch, S sequence, F frames, W windows, U units of a window, P patches of a unit, D width.
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
from models.engine.prompt import Prompt, make_prompt, round_up
from models.engine.relevance import RELEVANCE
from models.engine.visual import TowerRequest, Visual
from models.errors import ConfigError
from models.families.tables import decoder_table, qwen_vision_table
from models.io.table import Table
from models.nn.llama import Decoder
from models.nn.llama_config import TextConfig, text_config
from models.nn.qwen_vision import Frames, Merger, QwenVisionConfig, QwenVisionTower, qwen_vision_config
from tokencarve_jax import EVIDENCE

WINDOW_BUCKET = 4  # windows of a frame are a multiple of this


@dataclasses.dataclass(frozen=True)
class Qwen25VLConfig:
    """Tower, merger and decoder of a Qwen2.5-VL.

    Attributes:
      vision: the tower and its merger.
      text: the decoder.
      image_token_id: the placeholder, once per visual token of an image.
      video_token_id: the same for video.
      eos_token_ids: generation stops at any of them.
      pad_token_id: fills rows that have ended.
    """

    vision: QwenVisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of the smallest image."""
        return 1


@dataclasses.dataclass(frozen=True)
class _Media:
    """An image or a video.

    Attributes:
      patches: [frames * rows * columns of patches, numbers of a patch], as the processor gives them.
      grid: frames, rows and columns of units.
      seconds: between two frames in positions; 1 for an image.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    seconds: float

    @property
    def tokens(self) -> int:
        """Visual tokens."""
        return int(np.prod(self.grid))

    def positions(self) -> np.ndarray:
        """[tokens, 3] int32: time, row and column from 0."""
        frames, rows, columns = np.indices(self.grid, dtype=np.int32).reshape(3, -1)
        return np.stack([(frames * np.float32(self.seconds)).astype(np.int32), rows, columns], axis=-1)


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

    def __init__(self, config: Qwen25VLConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.mesh = None
        self.target = None
        self.vision_tower = QwenVisionTower(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Merger(config.vision, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config.text, dtype=dtype, rngs=rngs)

    @classmethod
    def read_config(cls, hf: Any, generation: Mapping[str, Any]) -> Qwen25VLConfig:
        """From a transformers `Qwen2_5_VLConfig`; ConfigError with everything that is not supported."""
        read, parts = Fields(hf), list[Any]()
        for read_part, part in ((qwen_vision_config, hf.vision_config), (text_config, hf.text_config)):
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
        config = Qwen25VLConfig(
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
    def table(config: Qwen25VLConfig) -> Table:
        """Tower, merger and decoder."""
        return [*qwen_vision_table(config.vision), *decoder_table(config.text, spelling="qwen")]

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
        images = self._media("pixel_values", pixel_values, "image_grid_thw", image_grid_thw)
        videos = self._media("pixel_values_videos", pixel_values_videos, "video_grid_thw", video_grid_thw)
        if second_per_grid_ts is not None:
            seconds = np.asarray(second_per_grid_ts, np.float32).reshape(-1)
            if len(seconds) != len(videos):
                raise ValueError(f"second_per_grid_ts has {len(seconds)} entries; expected one of {len(videos)} videos")
        else:
            seconds = np.ones(len(videos), np.float32)
        scaled = config.vision.tokens_per_second * seconds
        videos = [dataclasses.replace(one, seconds=float(many)) for one, many in zip(videos, scaled, strict=True)]
        found = _in_order(ids, {config.image_token_id: images, config.video_token_id: videos})
        frames, features_of = _lay_out(found, config.vision)
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
        positions, following = _positions(prompt, found, config.image_token_id)
        return dataclasses.replace(prompt, pixel_values=frames, positions=positions, next_position=following)

    def _media(self, name: str, pixels: Any, grid_name: str, grids: Any) -> list[_Media]:
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
            _Media(part, (int(frames), int(rows) // side, int(columns) // side), 1.0)
            for part, (frames, rows, columns) in zip(np.split(pixels, ends[:-1]), grids, strict=True)
        ]

    def visual(self, pixel_values: Frames, request: TowerRequest, key: jax.Array | None = None) -> Visual:
        """Visual tokens [F * W * U, D] of frames, in the weights' dtype, and evidence; those of holes mean nothing.

        Whatever layer a compressor reads elsewhere, evidence is of the last block that sees whole frames.
        """
        del key
        if request.cut is not None:
            raise ValueError(f"cut {request.cut}: {self.model_type} models cannot be cut in the tower; cut at 'input'")
        x, found = self.vision_tower(pixel_values, reads={name for name, _ in request.evidence})
        tokens = self.projector(x.reshape(*x.shape[:3], -1))
        evidence = {what: found[what[0]].reshape(-1, *found[what[0]].shape[3:]) for what in request.evidence}
        return Visual(tokens.reshape(-1, tokens.shape[-1]), evidence)


def _in_order(ids: np.ndarray, media: Mapping[int, list[_Media]]) -> list[_Media]:
    """Images and videos in the order in which their placeholders stand; those without any come last."""
    left, found = {token: list(those) for token, those in media.items()}, list[_Media]()
    placeholders, at = ids[np.isin(ids, list(media))], 0
    while at < len(placeholders) and left[int(placeholders[at])]:
        found.append(left[int(placeholders[at])].pop(0))
        at += found[-1].tokens
    return [*found, *(one for those in left.values() for one in those)]


def _lay_out(media: list[_Media], config: QwenVisionConfig) -> tuple[Frames | None, list[np.ndarray]]:
    """All frames by windows, and for each image or video where its visual tokens stand among all units."""
    if not media:
        return None, []
    side, patches_of_unit = config.window_units, config.merge_size**2
    slots = []
    for one in media:
        _, rows, columns = one.grid
        row, column = np.indices((rows, columns), dtype=np.int32).reshape(2, -1)
        window = row // side * -(-columns // side) + column // side
        slots.append((window * side**2 + row % side * side + column % side, row, column))
    windows = round_up(max(int(slot.max()) // side**2 + 1 for slot, _, _ in slots), WINDOW_BUCKET)
    count, units = sum(one.grid[0] for one in media), windows * side**2
    patches = np.zeros((count, units, patches_of_unit, config.patch_width), np.float32)
    inside, places = np.zeros((count, units), bool), np.zeros((count, units, 2), np.int32)
    features_of, first = list[np.ndarray](), 0
    for one, (slot, row, column) in zip(media, slots, strict=True):
        frames = np.arange(first, first + one.grid[0])
        patches[frames[:, None], slot] = one.patches.reshape(len(frames), len(slot), patches_of_unit, -1)
        inside[frames[:, None], slot] = True
        places[frames[:, None], slot] = np.stack([row, column], axis=-1)
        features_of.append((frames[:, None] * units + slot).reshape(-1))
        first += len(frames)
    shape = (count, windows, side**2)
    frames_by_windows = Frames(
        patches.reshape(*shape, *patches.shape[2:]), inside.reshape(shape), places.reshape(*shape, 2)
    )
    return frames_by_windows, features_of


def _positions(prompt: Prompt, media: list[_Media], placeholder: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions [B, S, 3] int32 of a packed batch (M-RoPE), and of the first new token [B].

    A word stands one further than what is before it, on all axes; behind an image or video, as far as its longer side.
    New tokens go on behind the largest position, which of a long video is its last frame's.
    """
    positions = np.zeros((*prompt.input_ids.shape, 3), np.int32)
    following, left = np.zeros(len(positions), np.int32), list(media)
    for row, (ids, length) in enumerate(zip(prompt.input_ids, prompt.lengths, strict=True)):
        at = now = 0
        while at < length:
            if ids[at] == placeholder:
                one = left.pop(0)
                positions[row, at : at + one.tokens] = now + one.positions()
                at, now = at + one.tokens, now + max(one.grid[1:])
            else:
                positions[row, at] = now
                at, now = at + 1, now + 1
        following[row] = positions[row, :length].max() + 1
    return positions, following
