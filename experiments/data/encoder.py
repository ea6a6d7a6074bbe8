"""From samples to a batch of whole prompts: the conversation around a question, and whether it fits the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.core.config import PromptConfig
from experiments.core.loading import Checkpoint, Inputs
from experiments.data.questions import Readable, Sample, without
from models.engine.plan import TOWER, Schedule
from models.errors import CommandError, one_line
from models.processor import render

# Whole prompts; {images} is a placeholder and a line break for each. Those of LLaVA's `conv_templates`.
CONVERSATIONS = {
    "vicuna_v1": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: {images}{text} ASSISTANT:",
    "checkpoint": "",  # its chat template
}
_VICUNA = ("llava", "llava_next")  # families with models that learnt by these


@dataclasses.dataclass(frozen=True)
class Ready:
    """Questions that are ready to be asked.

    Attributes:
      batches: numbers of questions, their prompts, and the most visual tokens of one; several where a question spoilt
        the batch for its neighbours.
      errors: what is wrong with each of the others.
    """

    batches: list[tuple[list[int], Inputs, int]]
    errors: dict[int, str]


class Encoder:
    """Makes batches for a model.

    Args:
      checkpoint: model and processor.
      prompt: how questions are put.

    Raises:
      CommandError: images are not padded, and so have no border; or the conversation is of other models.
    """

    def __init__(self, checkpoint: Checkpoint, prompt: PromptConfig):
        self._checkpoint, self._template, border = checkpoint, CONVERSATIONS[prompt.conversation], prompt.border
        self._border = border
        family = checkpoint.llava.model_type
        if self._template and family not in _VICUNA:
            name = prompt.conversation
            raise CommandError(f"{family} models do not know the prompt {name!r}; pass --conv-mode=checkpoint")
        if border != "keep" and checkpoint.image_aspect_ratio != "pad":
            raise CommandError(
                f"border {border!r} is for padded images; here they are {checkpoint.image_aspect_ratio!r}"
            )
        context = checkpoint.llava.config.text.max_positions
        self._context = min(context, checkpoint.processor.tokenizer.model_max_length)

    def check_cuts(self, cuts: Schedule) -> None:
        """Raise CommandError for a cut in the tower, which knows nothing of the border."""
        if self._border != "keep" and any(cut.place == TOWER for cut in cuts):
            raise CommandError(f"border {self._border!r}: a cut in the vision tower does not know of border")

    def ready(self, questions: Readable, indices: Sequence[int], size: int) -> Ready:
        """Read some questions, and pack them in batches of `size` rows."""
        samples, found = dict[int, Sample](), Ready([], {})
        for index in indices:
            try:
                samples[index] = self._fitting(questions.sample(index))
            except CommandError as error:
                found.errors[index] = str(error)
        if samples:
            self._pack(samples, size, found)
        return found

    def _pack(self, samples: dict[int, Sample], size: int, found: Ready) -> None:
        """All in one batch; where one of them cannot be encoded, each in its own."""
        try:
            inputs = self(list(samples.values()), size)
            most = self._checkpoint.llava.prompt(**inputs.named).visual_slots.shape[1]
        except (CommandError, ValueError, TypeError) as error:
            if len(samples) == 1:
                found.errors.update(dict.fromkeys(samples, f"{type(error).__name__}: {one_line(error)}"))
                return
            for index, sample in samples.items():
                self._pack({index: sample}, size, found)
        else:
            found.batches.append((list(samples), inputs, most))

    def _fitting(self, sample: Sample) -> Sample:
        self._checkpoint.check_length(sample.text)
        tokens = len(self._checkpoint.processor.tokenizer(self._prompt(sample), verbose=False)["input_ids"])
        tokens += len(sample.images) * (self._checkpoint.llava.config.tokens_per_image - 1)
        if tokens > self._context:
            raise CommandError(f"its prompt has {tokens} tokens; the model's context is {self._context}")
        return sample

    def __call__(self, samples: Sequence[Sample], size: int) -> Inputs:
        """A batch of `size` rows: the last sample is repeated where there are fewer, so that nothing compiles anew."""
        filled = [*samples, *[samples[-1]] * (size - len(samples))]
        return self._checkpoint.encode_texts(
            [sample.images for sample in filled],
            [self._prompt(sample) for sample in filled],
            questions=[sample.text for sample in filled],
            border=self._border,
        )

    def next_turn(self, sample: Sample, said: str, text: str) -> list[int]:
        """Tokens behind a sample's prompt: an answer, and the next question about the same images.

        Raises:
          CommandError: in the checkpoint's chat template a later turn changes the text before it.
        """
        tokenizer = self._checkpoint.processor.tokenizer
        if self._template:
            more = f" {said}{tokenizer.eos_token}USER: {text} ASSISTANT:"
        else:
            before, first = self._turns(sample), self._prompt(sample)
            then = [{"role": "assistant", "content": said}, {"role": "user", "content": text}]
            whole = render(self._checkpoint.processor, [*before, *then])
            if not whole.startswith(first):
                raise CommandError("the chat template changes what stands before a later turn")
            more = whole[len(first) :]
        return list(tokenizer(more, add_special_tokens=False)["input_ids"])

    def _prompt(self, sample: Sample) -> str:
        placeholder = self._checkpoint.processor.image_token
        text = without(sample.text, placeholder)
        if self._template:
            return self._template.format(images=f"{placeholder}\n" * len(sample.images), text=text)
        return render(self._checkpoint.processor, self._turns(sample))

    def _turns(self, sample: Sample) -> list[dict[str, Any]]:
        text = without(sample.text, self._checkpoint.processor.image_token)
        content = [*[{"type": "image"}] * len(sample.images), {"type": "text", "text": text}]
        return [{"role": "user", "content": content}]
