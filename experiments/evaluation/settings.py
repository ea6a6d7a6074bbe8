"""What an evaluation is told to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.core.loading import Checkpoint, load
from experiments.core.memory import Request
from experiments.reports.gallery import DEFAULT as GALLERY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """How the questions of a benchmark are put to a model; the defaults are LLaVA-1.5's.

    Attributes:
      image_aspect_ratio: see `experiments.data.preprocessing`.
      border: what becomes of visual tokens that show padding alone: "keep", "last" or "drop".
      conversation: a name of `experiments.data.encoder.CONVERSATIONS`.
      max_new_tokens: of an answer; None is what LLaVA's script for such questions says.
    """

    image_aspect_ratio: str = "pad"
    border: str = "keep"
    conversation: str = "vicuna_v1"
    max_new_tokens: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Asking):
    """Questions of a file, in place of those about scenes.

    Attributes:
      questions: the file, see `experiments.data.formats`.
      images: folder that its images are in; None where it holds them.
      answers: where answers go: one file per method, its name before the ending; None where nobody writes them.
      limit: the first so many rows alone; None means all.
    """

    questions: Path
    images: Path | None
    answers: Path | None = None
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What every run is told that asks a model with several methods.

    Attributes:
      model: folder of a checkpoint, or a model id on the hub.
      methods: what to compare with all tokens, by name.
      out: folder that everything is written to.
      scenes: how many; each is asked about once per family of questions.
      batch_size: questions at a time.
      seed: of the scenes and of random methods.
      dtype: of weights and hidden states.
      revision: of the model on the hub.
      clip: what tells relevance to the question, as `model`; None for nothing.
      clip_revision: of that on the hub.
      schedules: cuts as their texts, see `experiments.core.schedules`: each schedule is one more method.
      restart: forget what `out` holds of an earlier run.
      workers: how many share the questions.
      ray_address: of a Ray cluster; None stays on this machine.
      files: questions of a file in place of the scenes.
      gallery: how many questions have their images and carve maps recorded.
      report: write report.html at the end.
    """

    model: str
    methods: tuple[str, ...]
    out: Path
    scenes: int
    batch_size: int
    seed: int = 0
    dtype: str = "float32"
    revision: str | None = None
    clip: str | None = None
    clip_revision: str | None = None
    schedules: tuple[tuple[str, ...], ...] = ()
    restart: bool = False
    workers: int = 1
    ray_address: str | None = None
    files: Files | None = None
    gallery: int = GALLERY
    report: bool = True

    def load(self, asking: Asking | None = None) -> Checkpoint:
        """The model with its processor, and the CLIP; see `experiments.core.loading.load`.

        Args:
          asking: how questions are put; None is that of `files`, or the checkpoint's own way without them.
        """
        asking = asking or self.files
        return load(
            self.model,
            dtype=self.dtype,
            revision=self.revision,
            clip=self.clip,
            clip_revision=self.clip_revision,
            image_aspect_ratio="checkpoint" if asking is None else asking.image_aspect_ratio,
            request=self._request(asking),
        )

    def _request(self, asking: Asking | None) -> Request:
        """What is known of each batch: a row of a benchmark need have no image."""
        if asking is None:
            return Request(new_tokens=1, rows=self.batch_size, images=1)
        return Request(new_tokens=asking.max_new_tokens or 1, rows=self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """One evaluation.

    Attributes:
      keep: fraction or count of the visual tokens that are left.
    """

    keep: float | int
