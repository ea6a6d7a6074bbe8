"""LLaVA-OneVision (arXiv 2408.03326): LLaVA-NeXT with SigLIP's tower, larger grids, several images, and video.

An image that is alone in its prompt is cut into tiles, as in LLaVA-NeXT, and a grid of more patches than `max_tiles`
tiles have is made smaller; each of several images is one tile; a video's frames are tiles of which a quarter of the
tokens is left. So every visual token is a mean of up to four features, weighted, and says which: `Tiles`.

Axis letters: T tiles, N visual tokens of a batch, D width.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.config import Fields
from models.engine.prompt import Prompt, in_order
from models.engine.relevance import RELEVANCE
from models.engine.visual import TowerRequest, View, Visual
from models.families import anyres
from models.families.llava import llava_config
from models.families.llava_next import LlavaNext, LlavaNextConfig, read_grids
from models.families.onevision_media import (
    Media,
    Tiles,
    lay_out,
    tokens_of_image,
    tokens_of_tile,
    tokens_of_video,
    views_of,
)
from models.nn.siglip import SiglipVisionTower, siglip_vision_config
from tokencarve_jax import EVIDENCE


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
        media = self._media(ids, pixel_values, image_sizes, batch_num_images, pixel_values_videos)
        tiles, features_of = lay_out(media, config.vision.num_patches)
        # Placeholders are overwritten by visual tokens: which of the two stood there no longer matters.
        ids = np.where(ids == config.video_token_id, config.image_token_id, ids)
        prompt = super().pack(ids, None, attention_mask, features_of=features_of, **inputs)
        return dataclasses.replace(prompt, pixel_values=tiles)

    def views(
        self,
        input_ids: Any,
        pixel_values: Any,
        *,
        image_sizes: Any = None,
        batch_num_images: Any = None,
        pixel_values_videos: Any = None,
        **inputs: Any,
    ) -> list[View]:
        """See `VisionLanguageModel.views` and `onevision_media.views_of`."""
        media = self._media(np.asarray(input_ids), pixel_values, image_sizes, batch_num_images, pixel_values_videos)
        return views_of(media, self.config.image_grid_pinpoints, patch_size=self.config.vision.patch_size)

    def _media(self, ids: np.ndarray, pixels: Any, sizes: Any, together: Any, frames: Any) -> list[Media]:
        """Images and videos in the order of their tokens, from what `pack` takes."""
        images, videos = self._images(pixels, sizes, together), self._videos(frames)
        return in_order(ids, {self.config.image_token_id: images, self.config.video_token_id: videos})

    def _images(self, pixel_values: Any, image_sizes: Any, batch_num_images: Any) -> list[Media]:
        """The images of a batch; ValueError for shapes that do not fit each other."""
        if pixel_values is None and image_sizes is None:
            return []
        sizes, pixels, vision = anyres.sizes_of(pixel_values, image_sizes), np.asarray(pixel_values), self.config.vision
        self.check_pixels(pixels)
        together = np.ones(len(sizes), int) if batch_num_images is None else np.asarray(batch_num_images)
        if together.ndim != 1 or together.min(initial=0) < 0 or together.sum() != len(sizes):
            raise ValueError(f"batch_num_images is {together.tolist()}; expected counts of {len(sizes)} images in all")
        pinpoints, patches = self.config.image_grid_pinpoints, vision.image_size // vision.patch_size
        found, one = list[Media](), tokens_of_tile(patches)
        for size, tiles, alone in zip(sizes, pixels, np.repeat(together == 1, together), strict=True):
            if not alone:
                found.append(Media(tiles[:1], one))
                continue
            count = anyres.num_tiles(size, pinpoints, vision.image_size)
            anyres.check_tiles(pixels, [count])
            mix = tokens_of_image(
                size, pinpoints, tile=vision.image_size, patches=patches, max_tiles=self.config.max_tiles
            )
            found.append(Media(tiles[:count], mix, size))
        return found

    def _videos(self, pixel_values: Any) -> list[Media]:
        """The videos of a batch; ValueError for another shape."""
        if pixel_values is None:
            return []
        pixels, vision = np.asarray(pixel_values), self.config.vision
        if pixels.ndim != 5 or not pixels.shape[1]:
            expected = "expected [videos, frames, channels, height, width], and a frame at least"
            raise ValueError(f"pixel_values_videos has shape {pixels.shape}; {expected}")
        self.check_pixels(pixels, "pixel_values_videos")
        mix = tokens_of_video(pixels.shape[1], vision.image_size // vision.patch_size)
        return [Media(frames, mix) for frames in pixels]

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


def _mixed(rows: jax.Array, tiles: Tiles) -> jax.Array:
    """Of features [F, ...] what visual tokens have, [N, ...]; summed in float32."""
    mean = jnp.zeros((len(tiles.features), *rows.shape[1:]), jnp.float32)
    for corner in range(tiles.features.shape[1]):
        weight = tiles.weights[:, corner].reshape(-1, *[1] * (rows.ndim - 1))
        mean += weight * jnp.take(rows, tiles.features[:, corner], axis=0).astype(jnp.float32)
    return mean.astype(rows.dtype)
