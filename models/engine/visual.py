"""What a family computes from images: visual tokens, and evidence about them.

Axis letters: N visual tokens of an image, K kept, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from models.engine.plan import Cut

Evidence = dict[tuple[str, int], jax.Array]  # by name and tower layer


@dataclasses.dataclass(frozen=True)
class TowerRequest:
    """What to compute in the tower. Static.

    Attributes:
      evidence: names and tower layers.
      cut: the cut at "tower", or None.
      kernel: of attention.
    """

    evidence: tuple[tuple[str, int], ...] = ()
    cut: Cut | None = None
    kernel: str = "blocks"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visual:
    """Visual tokens of a batch. A pytree.

    Attributes:
      tokens: [features, D], to which `Prompt.feature_index` points; after a cut in the tower, the survivors.
      evidence: arrays [features, ...] aligned with them.
      indices: [images, K] int32, which of an image's N survive a cut in the tower; None without one.
      sizes: [images, K] float32, how many each stands for.
      assignment: [images, N] int32, which of the K each lives on in, or -1.
      deepstack: arrays [features, D]: what is added to the visual tokens behind decoder layer 0, 1, ...
    """

    tokens: jax.Array
    evidence: Evidence
    indices: jax.Array | None = None
    sizes: jax.Array | None = None
    assignment: jax.Array | None = None
    deepstack: tuple[jax.Array, ...] = ()


@dataclasses.dataclass(frozen=True)
class View:
    """A picture that the tower sees: an image, all tiles of one, or a frame of a video.

    Attributes:
      pixels: [C, height, width], as the processor gives them.
      tokens: int [rows, columns], which divide it evenly: of all visual tokens of its prompt the one that lies there.
        Those that lie nowhere, newlines and class tokens, are in no view.
    """

    pixels: np.ndarray
    tokens: np.ndarray


def projection(projector: Any) -> jax.tree_util.Partial:
    """A projector as the evidence "projector": a pytree that can be called."""
    return jax.tree_util.Partial(_project, projector)


def _project(projector: Any, features: jax.Array) -> jax.Array:
    return projector(features)
