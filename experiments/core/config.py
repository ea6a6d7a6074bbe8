"""What a run is told: which model, how questions are put to it, and where and by whom the work is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A checkpoint.

    Attributes:
      source: a folder, or a model id on the hub.
      revision: branch, tag or commit on the hub; None is its main branch.
      dtype: of weights and hidden states.
      clip: what tells relevance to the question, as `source`; None for nothing.
      clip_revision: as `revision`.
    """

    source: str
    revision: str | None = None
    dtype: str = "float32"
    clip: str | None = None
    clip_revision: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How questions are put to a model; the defaults are LLaVA-1.5's.

    Attributes:
      image_aspect_ratio: see `experiments.core.preprocessing`.
      border: what becomes of visual tokens that show padding alone: "keep", "last" or "drop".
      conversation: a name of `experiments.data.encoder.CONVERSATIONS`.
      max_new_tokens: of an answer; None is what the question set says.
    """

    image_aspect_ratio: str = "pad"
    border: str = "keep"
    conversation: str = "vicuna_v1"
    max_new_tokens: int | None = None


CHECKPOINT = PromptConfig(image_aspect_ratio="checkpoint", conversation="checkpoint")
"""The checkpoint's own way."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of a command.

    Attributes:
      out: folder that everything is written to.
      command: what is put on record as having asked for it.
      restart: forget what `out` holds of an earlier run.
      workers: how many share the questions.
      ray_address: of a Ray cluster; None stays on this machine.
    """

    out: Path
    command: tuple[str, ...]
    restart: bool = False
    workers: int = 1
    ray_address: str | None = None
