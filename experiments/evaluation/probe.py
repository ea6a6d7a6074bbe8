"""How a batch is prefilled, and what may be measured on the way."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from models.engine.model import VisionLanguageModel
from models.engine.plan import Schedule
from models.engine.prefill import Prefilled
from models.engine.prompt import Prompt


class Probe:
    """How a prompt is prefilled, and what is measured on the way: here nothing. Subclasses can be pickled."""

    def __call__(
        self,
        model: VisionLanguageModel,
        prompt: Prompt,
        cuts: Schedule,
        *,
        indices: Sequence[int],
        seed: int,
        decode_capacity: int,
    ) -> tuple[Prefilled, Mapping[str, list[Any]]]:
        """Prefill a batch, as `VisionLanguageModel.prefill` does.

        Args:
          model: see there, and so for the others.
          prompt: see there.
          cuts: see there.
          indices: of its questions; further rows are padding.
          seed: see there.
          decode_capacity: see there.

        Returns:
          The same; and by name what was measured, one JSON value for each question.
        """
        del indices
        return model.prefill(prompt, carve=cuts, seed=seed, decode_capacity=decode_capacity), {}


@functools.partial(jax.jit, static_argnames=("size",))
def reduced(pixels: jax.Array, *, size: int) -> jax.Array:
    """Images [images, C, height, width] at a resolution of size x size, enlarged again."""
    small = jax.image.resize(pixels, (*pixels.shape[:2], size, size), "bicubic", antialias=True)
    return jax.image.resize(small, pixels.shape, "bicubic").astype(pixels.dtype)
