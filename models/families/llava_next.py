"""LLaVA-NeXT: LLaVA with images of any resolution, split into tiles; see `models.families.anyres`.

Axis letters: N visual tokens of a tile, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.config import Fields
from models.engine.prompt import Prompt
from models.engine.visual import TowerRequest, View, Visual
from models.families import anyres
from models.families.llava import Llava, LlavaConfig, llava_config
from models.families.tables import newline_table
from models.io.table import Table

_MAX_GRIDS, _MAX_TILES = 256, 64  # published: 5 grids of up to 4 tiles, 36 of up to 36


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaNextConfig(LlavaConfig):
    """A LLaVA-NeXT.

    Attributes:
      image_grid_pinpoints: (height, width) in pixels of the grids that an image may be cut into.
    """

    image_grid_pinpoints: tuple[tuple[int, int], ...]


def _is_grid(pair: Any, side: int) -> bool:
    """Whether `pair` is the height and width of a grid of a few tiles."""
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return False
    whole = all(isinstance(length, int) and length >= side and length % side == 0 for length in pair)
    return whole and pair[0] * pair[1] <= _MAX_TILES * side**2


def read_grids(hf: Any, read: Fields, *, strategy: str) -> tuple[tuple[int, int], ...]:
    """The grids of a config whose `vision_feature_select_strategy` must be `strategy`; notes problems in `read`."""
    side = Fields(hf.vision_config, "vision_config.").whole("image_size", 1, 2**13)
    pinpoints, expected = read.get("image_grid_pinpoints"), f"expected multiples of {side} pixels, two by two"
    if (found := read.get("vision_feature_select_strategy")) != strategy:
        read.wrong("vision_feature_select_strategy", found, f"the grids of {hf.model_type!r} need {strategy!r}")
    if (
        isinstance(pinpoints, (list, tuple))
        and 1 <= len(pinpoints) <= _MAX_GRIDS
        and all(_is_grid(pair, side) for pair in pinpoints)
    ):
        return tuple((height, width) for height, width in pinpoints)
    read.wrong("image_grid_pinpoints", pinpoints, expected)
    return ()


class LlavaNext(Llava):
    """A LLaVA-NeXT; see `Llava`."""

    model_type = "llava_next"
    square = False

    def __init__(self, config: LlavaNextConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        # Stands at the end of each row of an image's grid.
        newline = nnx.initializers.normal(0.02)(rngs.params(), (config.text.hidden_size,), dtype)
        self.image_newline = nnx.Param(newline)

    @classmethod
    def read_config(cls, hf: Any, generation: Mapping[str, Any]) -> LlavaNextConfig:
        """From a transformers `LlavaNextConfig`; ConfigError with everything that is not supported."""
        read = Fields(hf)
        pinpoints = read_grids(hf, read, strategy="default")
        common = llava_config(hf, generation, more=tuple(read.problems))
        fields = {field.name: getattr(common, field.name) for field in dataclasses.fields(common)}
        return LlavaNextConfig(**fields, image_grid_pinpoints=pinpoints)

    @staticmethod
    def table(config: LlavaConfig) -> Table:
        """LLaVA's table and the newline."""
        return [*Llava.table(config), *newline_table()]

    def pack(
        self, input_ids: Any, pixel_values: Any, attention_mask: Any, *, image_sizes: Any = None, **inputs: Any
    ) -> Prompt:
        """See `make_prompt` and `anyres.lay_out`; `image_sizes` [images, 2] is height and width before resizing."""
        if "border" in inputs:
            raise TypeError(f"{self.model_type} models do not take border")
        if pixel_values is None:
            return super().pack(input_ids, None, attention_mask, **inputs)
        stack, features_of = self._lay_out(pixel_values, image_sizes)
        return super().pack(input_ids, stack, attention_mask, features_of=features_of, **inputs)

    def _lay_out(self, pixel_values: Any, image_sizes: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        """See `anyres.lay_out`."""
        self.check_pixels(pixel_values)
        pinpoints, vision = self.config.image_grid_pinpoints, self.config.vision
        return anyres.lay_out(
            pixel_values, image_sizes, pinpoints=pinpoints, tile=vision.image_size, patch_size=vision.patch_size
        )

    def views(self, input_ids: Any, pixel_values: Any, *, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """See `VisionLanguageModel.views`: of each image two, see `anyres.views_of_image`."""
        pinpoints, patch_size = self.config.image_grid_pinpoints, self.config.vision.patch_size
        _, features_of = self._lay_out(pixel_values, image_sizes)
        sizes, found, first = anyres.sizes_of(pixel_values, image_sizes), list[View](), 0
        for tiles, size, features in zip(np.asarray(pixel_values), sizes, features_of, strict=True):
            tokens = np.where(features == features[-1], -1, first + np.arange(len(features)))  # it ends in a newline
            found += anyres.views_of_image(tiles, tokens, size, pinpoints, patch_size=patch_size)
            first += len(features)
        return found

    def visual(self, pixel_values: jax.Array, request: TowerRequest, key: jax.Array | None = None) -> Visual:
        """Visual tokens of all tiles, and the newline as last row; evidence is zero there. No cut in the tower."""
        if request.cut is not None:
            raise ValueError(f"cut {request.cut}: {self.model_type} models cannot be cut in the tower; cut at 'input'")
        seen = super().visual(pixel_values, request, key)
        newline = self.image_newline[...][None].astype(seen.tokens.dtype)
        evidence = {
            what: jnp.concatenate([array, jnp.zeros((1, *array.shape[1:]), array.dtype)])
            for what, array in seen.evidence.items()
        }
        return Visual(jnp.concatenate([seen.tokens, newline]), evidence)
