"""What a run is told: which model, how questions are put to it, and where and by whom the work is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A checkpoint."""

    source: str  # a folder, or a model id on the hub
    revision: str | None = None  # branch, tag or commit on the hub; None is its main branch
    dtype: str = "float32"  # of weights and hidden states
    clip: str | None = None  # what tells relevance to the question, as `source`; None for nothing
    clip_revision: str | None = None  # as `revision`


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How questions are put to a model; the defaults are LLaVA-1.5's."""

    image_aspect_ratio: str = "pad"  # see `experiments.core.preprocessing`
    border: str = "keep"  # what becomes of visual tokens that show padding alone: "keep", "last" or "drop"
    conversation: str = "vicuna_v1"  # a name of `experiments.data.encoder.CONVERSATIONS`
    max_new_tokens: int | None = None  # of an answer; None is what the question set says


CHECKPOINT = PromptConfig(image_aspect_ratio="checkpoint", conversation="checkpoint")
"""The checkpoint's own way."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of a command."""

    out: Path  # folder that everything is written to
    command: tuple[str, ...]  # what is put on record as having asked for it
    restart: bool = False  # forget what `out` holds of an earlier run
    workers: int = 1  # how many share the questions
    ray_address: str | None = None  # of a Ray cluster; None stays on this machine
