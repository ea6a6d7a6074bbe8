"""LLaVA-OneVision (arXiv 2408.03326): LLaVA-NeXT with SigLIP's tower, larger grids, several images, and video.

An image that is alone in its prompt is cut into tiles, as in LLaVA-NeXT, and a grid of more patches than `max_tiles`
tiles have is made smaller; each of several images is one tile; a video's frames are tiles of which a quarter of the
tokens is left. So every visual token is a mean of up to four features, weighted, and says which: `Tiles`.

Axis letters: T tiles, N visual tokens of a batch, D width.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.config import Fields
from models.engine.prompt import VISUAL_BUCKET, Prompt, round_up
from models.engine.relevance import RELEVANCE
from models.engine.visual import TowerRequest, Visual
from models.families import anyres
from models.families.llava import llava_config
from models.families.llava_next import LlavaNext, LlavaNextConfig, read_grids
from models.nn.siglip import SiglipVisionTower, siglip_vision_config
from tokencarve_jax import EVIDENCE

TILE_BUCKET = 4  # tiles of a batch are a multiple of this
_SHRUNK_FROM = 1.1  # how much longer than `max_tiles` allow a grid's side must be to be made smaller
Mix = tuple[np.ndarray, np.ndarray]  # features and weights of visual tokens, [N, 4] each, as in `Tiles`


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaOnevisionConfig(LlavaNextConfig):
    """A LLaVA-OneVision.

    Attributes:
      video_token_id: the placeholder of videos.
      max_tiles: a grid with more patches than so many tiles have is made smaller (`vision_aspect_ratio`).
    """

    video_token_id: int
    max_tiles: int

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of a tile."""
        return self.vision.num_patches

    @property
    def grid(self) -> None:
        """None: an image's newlines have no place in the raster."""
        return


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of images and frames of videos, and what visual tokens are made of. A pytree.

    Attributes:
      pixels: [T, C, height, width].
      features: [N, 4] int32 rows among the features of all tiles, the newline being the last row of all.
      weights: [N, 4] float32, how much each counts.
    """

    pixels: Any
    features: Any
    weights: Any


@dataclasses.dataclass(frozen=True)
class _Media:
    """An image or a video.

    Attributes:
      tiles: [T, C, height, width].
      mix: of its visual tokens, from the features of its own tiles; -1 is the newline.
    """

    tiles: np.ndarray
    mix: Mix

    @property
    def tokens(self) -> int:
        """Visual tokens."""
        return len(self.mix[0])


def _joined(*parts: Mix) -> Mix:
    features, weights = (np.concatenate(those) for those in zip(*parts, strict=True))
    return features, weights


def _flat(mix: Mix) -> Mix:
    return mix[0].reshape(-1, 4), mix[1].reshape(-1, 4)


def _as_they_are(features: np.ndarray) -> Mix:
    """Tokens that are one feature each."""
    return _flat(anyres.resized(features.reshape(1, -1), (1, features.size)))


_NEWLINE = _as_they_are(np.array(-1))


def tokens_of_image(
    size: anyres.Size, pinpoints: Sequence[anyres.Size], *, tile: int, patches: int, max_tiles: int
) -> Mix:
    """What the visual tokens of an image with tiles are: the whole image, then its grid, a newline behind each row.

    Arguments are those of `anyres.features_of_image`; `max_tiles` is of `LlavaOnevisionConfig`.
    """
    grid = anyres.unpadded_grid(size, pinpoints, tile=tile, patches=patches, first=0)
    rows, columns = grid.shape
    ratio = math.sqrt(rows * columns / (max_tiles * patches**2))
    if ratio > _SHRUNK_FROM:
        rows, columns = int(rows // ratio), int(columns // ratio)
    features, weights = anyres.resized(grid, (rows, columns))
    lines = [_joined(line, _NEWLINE) for line in zip(features, weights, strict=True)]
    return _joined(_as_they_are(np.arange(patches**2)), *lines)


def tokens_of_video(frames: int, patches: int) -> Mix:
    """What a video's visual tokens are: each frame's, half as many along each side, and one newline at the end."""
    frame, half = np.arange(patches**2).reshape(patches, patches), -(-patches // 2)
    features, weights = _flat(anyres.resized(frame, (half, half)))
    return _joined(*((features + number * patches**2, weights) for number in range(frames)), _NEWLINE)


def max_tiles(read: Fields) -> int:
    """The number in `vision_aspect_ratio`; a problem is noted in `read`."""
    aspect = read.get("vision_aspect_ratio")
    if isinstance(aspect, str) and (found := re.fullmatch("anyres_max_([1-9][0-9]?)", aspect)):
        return int(found[1])
    read.wrong("vision_aspect_ratio", aspect, "expected anyres_max_ and a number of tiles from 1 to 99")
    return 1


class LlavaOnevision(LlavaNext):
    """A LLaVA-OneVision; see `Llava`."""

    model_type = "llava_onevision"
    tower = SiglipVisionTower
    evidence = frozenset(EVIDENCE) - {*RELEVANCE}  # no CLIP
    config: LlavaOnevisionConfig

    @classmethod
    def read_config(cls, hf: Any, generation: Mapping[str, Any]) -> LlavaOnevisionConfig:
        """From a transformers `LlavaOnevisionConfig`; ConfigError with everything that is not supported."""
        read = Fields(hf)
        pinpoints = read_grids(hf, read, strategy="full")  # there is no class token to leave out
        most, video = max_tiles(read), read.whole("video_token_id", 0, 2**31 - 1)
        common = llava_config(hf, generation, more=tuple(read.problems), tower=siglip_vision_config)
        if video >= common.text.vocab_size or video == common.image_token_id:
            read.wrong("video_token_id", video, f"expected another than {common.image_token_id} in the vocabulary")
        read.check()
        fields = {field.name: getattr(common, field.name) for field in dataclasses.fields(common)}
        return LlavaOnevisionConfig(**fields, image_grid_pinpoints=pinpoints, video_token_id=video, max_tiles=most)

    def pack(
        self,
        input_ids: Any,
        pixel_values: Any,
        attention_mask: Any,
        *,
        image_sizes: Any = None,
        batch_num_images: Any = None,
        pixel_values_videos: Any = None,
        **inputs: Any,
    ) -> Prompt:
        """See `make_prompt`; inputs by the processor's names.

        Args:
          input_ids: [B, S].
          pixel_values: [images, T, C, height, width], each image's tiles first and padding after them.
          attention_mask: [B, S].
          image_sizes: [images, 2], height and width before resizing.
          batch_num_images: how many images belong together; those that are not alone are one tile each. None means
            that all are alone, as for transformers.
          pixel_values_videos: [videos, frames, C, height, width].
          **inputs: as for `Llava.pack`.
        """
        config, ids = self.config, np.asarray(input_ids)
        images = self._images(pixel_values, image_sizes, batch_num_images)
        videos = self._videos(pixel_values_videos)
        media = _in_order(ids, {config.image_token_id: images, config.video_token_id: videos})
        tiles, features_of = _lay_out(media, config.vision.num_patches)
        # Placeholders are overwritten by visual tokens: which of the two stood there no longer matters.
        ids = np.where(ids == config.video_token_id, config.image_token_id, ids)
        prompt = super().pack(ids, None, attention_mask, features_of=features_of, **inputs)
        return dataclasses.replace(prompt, pixel_values=tiles)

    def _images(self, pixel_values: Any, image_sizes: Any, batch_num_images: Any) -> list[_Media]:
        """The images of a batch; ValueError for shapes that do not fit each other."""
        if pixel_values is None and image_sizes is None:
            return []
        sizes, pixels, vision = anyres.sizes_of(pixel_values, image_sizes), np.asarray(pixel_values), self.config.vision
        self.check_pixels(pixels)
        together = np.ones(len(sizes), int) if batch_num_images is None else np.asarray(batch_num_images)
        if together.ndim != 1 or together.min(initial=0) < 0 or together.sum() != len(sizes):
            raise ValueError(f"batch_num_images is {together.tolist()}; expected counts of {len(sizes)} images in all")
        pinpoints, patches = self.config.image_grid_pinpoints, vision.image_size // vision.patch_size
        found, one = list[_Media](), _joined(_as_they_are(np.arange(patches**2)), _NEWLINE)
        for size, tiles, alone in zip(sizes, pixels, np.repeat(together == 1, together), strict=True):
            if not alone:
                found.append(_Media(tiles[:1], one))
                continue
            count = anyres.num_tiles(size, pinpoints, vision.image_size)
            anyres.check_tiles(pixels, [count])
            mix = tokens_of_image(
                size, pinpoints, tile=vision.image_size, patches=patches, max_tiles=self.config.max_tiles
            )
            found.append(_Media(tiles[:count], mix))
        return found

    def _videos(self, pixel_values: Any) -> list[_Media]:
        """The videos of a batch; ValueError for another shape."""
        if pixel_values is None:
            return []
        pixels, vision = np.asarray(pixel_values), self.config.vision
        if pixels.ndim != 5 or not pixels.shape[1]:
            expected = "expected [videos, frames, channels, height, width], and a frame at least"
            raise ValueError(f"pixel_values_videos has shape {pixels.shape}; {expected}")
        self.check_pixels(pixels, "pixel_values_videos")
        mix = tokens_of_video(pixels.shape[1], vision.image_size // vision.patch_size)
        return [_Media(frames, mix) for frames in pixels]

    def visual(self, pixel_values: Any, request: TowerRequest, key: jax.Array | None = None) -> Visual:
        """Visual tokens [N, D] of `Tiles`, in the weights' dtype, and evidence about them; zero for newlines.

        There is no class token: in place of its attention stands what a patch receives from all patches of its tile.
        Evidence about a token is the mean of that about its features, like the token itself.
        """
        asked = {
            what: ("global_attention", what[1]) if what[0] == "class_attention" else what for what in request.evidence
        }
        reads = dataclasses.replace(request, evidence=tuple(dict.fromkeys(asked.values())))
        seen = super().visual(pixel_values.pixels, reads, key)
        evidence = {what: _mixed(seen.evidence[read], pixel_values) for what, read in asked.items()}
        return Visual(_mixed(seen.tokens, pixel_values), evidence)


def _in_order(ids: np.ndarray, media: Mapping[int, list[_Media]]) -> list[_Media]:
    """Images and videos in the order in which their placeholders stand; those without any come last."""
    found = list[tuple[int, _Media]]()
    for token, those in media.items():
        places = [*np.flatnonzero(ids == token).tolist(), ids.size]
        first = np.cumsum([0, *(one.tokens for one in those)])
        found += [(places[min(at, len(places) - 1)], one) for at, one in zip(first, those, strict=False)]
    return [one for _, one in sorted(found, key=lambda at: at[0])]


def _lay_out(media: list[_Media], patches: int) -> tuple[Tiles | None, list[np.ndarray]]:
    """All tiles in one stack, and for each image or video which of all visual tokens are its own, in order.

    Numbers of tiles and of tokens are rounded up, so that images of any shape share few compiled programs.
    """
    if not media:
        return None, []
    count, total = sum(len(one.tiles) for one in media), sum(one.tokens for one in media)
    pixels = np.zeros((round_up(count, TILE_BUCKET), *media[0].tiles.shape[1:]), np.float32)
    shape = round_up(total, VISUAL_BUCKET), 4
    features, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    features_of, tile, token = list[np.ndarray](), 0, 0
    for one in media:
        here = slice(token, token + one.tokens)
        pixels[tile : tile + len(one.tiles)] = one.tiles
        own, weights[here] = one.mix
        features[here] = np.where(own < 0, len(pixels) * patches, tile * patches + own)
        features_of.append(np.arange(here.start, here.stop))
        tile, token = tile + len(one.tiles), here.stop
    return Tiles(pixels, features, weights), features_of


def _mixed(rows: jax.Array, tiles: Tiles) -> jax.Array:
    """Of features [F, ...] what visual tokens have, [N, ...]; summed in float32."""
    mean = jnp.zeros((len(tiles.features), *rows.shape[1:]), jnp.float32)
    for corner in range(tiles.features.shape[1]):
        weight = tiles.weights[:, corner].reshape(-1, *[1] * (rows.ndim - 1))
        mean += weight * jnp.take(rows, tiles.features[:, corner], axis=0).astype(jnp.float32)
    return mean.astype(rows.dtype)
