"""Questions read and packed into batches, each made once however many cells are asked about it."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.core import loading
from experiments.core.config import PromptConfig
from experiments.core.loading import BUCKET, Checkpoint, Inputs
from experiments.data.ahead import Ahead
from experiments.data.encoder import Encoder, Ready
from experiments.data.questions import QuestionSource, Readable, Sample
from experiments.evaluation.probe import reduced
from models.engine import embed
from models.engine.model import VisionLanguageModel
from models.engine.plan import Schedule, has_budgets_per_image
from models.engine.prompt import Prompt
from models.engine.visual import TowerRequest, Visual

EXAMPLE = Sample("", "What is this?", (np.zeros((8, 8, 3), np.uint8),), None, 0)
"""A question with an image, where those that will be asked are not known."""


@dataclasses.dataclass
class Batch:
    """Questions that are asked together."""

    indices: list[int]  # their numbers; the prompts' further rows repeat the last
    inputs: Inputs  # the prompts
    most: int  # visual tokens of the row that has most
    seed: int  # of methods that draw
    vanilla: np.ndarray | None = None  # [B, V] logits of the first token with all visual tokens, once they are known
    _packed: dict[bool, Prompt] = dataclasses.field(default_factory=dict)
    _seen: dict[tuple[TowerRequest, int | None], Visual] = dataclasses.field(default_factory=dict)
    _seeing: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def prompt(self, model: VisionLanguageModel, cuts: Schedule) -> Prompt:
        """The prompts on the device, packed as the cuts need them."""
        per_image = has_budgets_per_image(cuts)
        if per_image not in self._packed:
            packed = model.prompt(**self.inputs.named, per_image=per_image, bucket=BUCKET)
            self._packed[per_image] = jax.device_put(packed)
        return self._packed[per_image]

    def seen(self, model: VisionLanguageModel, cuts: Schedule, side: int | None, *, anew: bool) -> Prompt:
        """The prompts with what the tower gives for their images; once for all cells that ask the same of it.

        Args:
          model: the model.
          cuts: of a cell.
          side: patches in a row of the resolution to which its images are brought; None leaves them as they are.
          anew: run the tower even where its result is known.
        """
        prompt = self.prompt(model, cuts)
        if prompt.pixel_values is None:
            return prompt
        (given, seed), how = model.arguments(prompt, cuts, self.seed)
        request = embed.tower_request(model, prompt, plan=how["plan"], kernel=how["target"].kernel)
        with self._seeing:  # another cell may be about to compile the same
            if anew or (request, side) not in self._seen:
                pixels = given.pixel_values
                if side is not None:
                    pixels = reduced(pixels, size=side * model.config.vision.patch_size)
                self._seen[request, side] = embed.see(model, pixels, seed, request=request)
            return dataclasses.replace(prompt, pixel_values=self._seen[request, side])


class Batches:
    """Makes the batches of a worker, with its `encoder`, from its own `questions` or others.

    Args:
      checkpoint: model and processor.
      source: of the worker's own questions.
      prompt: how they are put.
      size: rows of a batch.
      seed: of methods that draw.

    Raises:
      CommandError: the questions cannot be read, or `prompt` asks for what the images do not have.
    """

    def __init__(self, checkpoint: Checkpoint, source: QuestionSource, prompt: PromptConfig, size: int, seed: int):
        self.questions, self.encoder = source.load(), Encoder(checkpoint, prompt)
        self._checkpoint, self._size, self._seed = checkpoint, size, seed
        packer = functools.partial(_packer, checkpoint.folder, source, prompt, size)
        self._ahead = Ahead(lambda key: self.encoder.ready(self.questions, key, size), packer)
        self._latest: tuple[tuple[int, ...], list[Batch], dict[int, str]] = ((), [], {})

    @functools.cached_property
    def _first(self) -> Prompt:
        """The first question's prompt, for which costs are counted."""
        for part in self.questions.batches(1):
            if ready := self.encoder.ready(self.questions, part, 1).batches:
                inputs = ready[0][1]
                break
        else:
            inputs = self.encoder([EXAMPLE], 1)
        return self._checkpoint.llava.prompt(**inputs.named, bucket=BUCKET)

    @property
    def length(self) -> int:
        """Its tokens, visual ones included and rounded up."""
        return int(self._first.input_ids.shape[1])

    @property
    def visual(self) -> int:
        """Its visual tokens, rounded up where images have any number; at least 1."""
        return max(1, int(self._first.visual_slots.shape[1]))

    def read(
        self, questions: Readable, indices: Sequence[int], then: Sequence[Sequence[int]] = ()
    ) -> tuple[list[Batch], dict[int, str]]:
        """Read questions and pack them.

        Args:
          questions: the worker's own, or others.
          indices: of those to ask, not more than a batch has.
          then: what is likely to be asked for next, made in other processes meanwhile.

        Returns:
          Batches, more than one where a question spoilt it for its neighbours; and what is wrong with the others.
        """
        key = tuple(indices)
        if questions is self.questions and key == self._latest[0]:
            return self._latest[1:]
        if questions is self.questions:  # a CLIP sees the questions on the accelerator, which is this process's
            ready = self._ahead.get(key, [tuple(part) for part in then] if self._checkpoint.clip is None else ())
        else:
            ready = self.encoder.ready(questions, key, self._size)
        batches = [Batch(own, inputs, most, self.seed(own)) for own, inputs, most in ready.batches]
        if questions is self.questions:
            self._latest = key, batches, ready.errors
        return batches, ready.errors

    def seed(self, indices: Sequence[int]) -> int:
        """Of a batch, whoever asks it."""
        return (self._seed * 1_000_003 + indices[0]) % 2**32


def _packer(folder: Path, source: QuestionSource, prompt: PromptConfig, size: int) -> Callable[[Sequence[int]], Ready]:
    """What is done before the model is needed, in a process without one."""
    checkpoint = loading.load_without_weights(folder, image_aspect_ratio=prompt.image_aspect_ratio)
    encoder, questions = Encoder(checkpoint, prompt), source.load()
    return lambda indices: encoder.ready(questions, indices, size)
