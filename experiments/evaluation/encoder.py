"""From samples to a batch of whole prompts: the conversation around a question, and whether it fits the model."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.cli import CommandError
from experiments.evaluation.questions import Readable, Sample
from experiments.loading import Checkpoint, Inputs
from models.engine.plan import TOWER, Schedule
from models.processor import render

# Whole prompts; {images} is a placeholder and a line break for each. Those of LLaVA's `conv_templates`.
CONVERSATIONS = {
    "vicuna_v1": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: {images}{text} ASSISTANT:",
    "checkpoint": "",  # its chat template
}


class Encoder:
    """Makes batches for a model.

    Args:
      checkpoint: model and processor.
      conversation: a name of `CONVERSATIONS`.
      border: what becomes of visual tokens that show padding alone, see `Checkpoint.encode_texts`.

    Raises:
      CommandError: images are not padded, and so have no border.
    """

    def __init__(self, checkpoint: Checkpoint, *, conversation: str = "checkpoint", border: str = "keep"):
        self._checkpoint, self._template, self._border = checkpoint, CONVERSATIONS[conversation], border
        if border != "keep" and checkpoint.image_aspect_ratio != "pad":
            raise CommandError(
                f"border {border!r} is for padded images; here they are {checkpoint.image_aspect_ratio!r}"
            )
        context = checkpoint.llava.config.text.max_positions
        self._context = min(context, checkpoint.processor.tokenizer.model_max_length)

    def check_cuts(self, cuts: Schedule) -> None:
        """Refuse what does not go with the border.

        Raises:
          CommandError: a cut in the tower.
        """
        if self._border != "keep" and any(cut.place == TOWER for cut in cuts):
            raise CommandError(f"border {self._border!r}: a cut in the vision tower does not know of border")

    def readable(self, questions: Readable, indices: Sequence[int]) -> tuple[dict[int, Sample], dict[int, str]]:
        """Those of the questions that can be read and fit into the model's context; what is wrong with the others."""
        samples, errors = dict[int, Sample](), dict[int, str]()
        for index in indices:
            try:
                samples[index] = self._fitting(questions.sample(index))
            except CommandError as error:
                errors[index] = str(error)
        return samples, errors

    def _fitting(self, sample: Sample) -> Sample:
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

    def _prompt(self, sample: Sample) -> str:
        placeholder, text = self._checkpoint.processor.image_token, sample.text
        while placeholder in text:
            text = text.replace(placeholder, "")
        if self._template:
            return self._template.format(images=f"{placeholder}\n" * len(sample.images), text=text)
        content = [*[{"type": "image"}] * len(sample.images), {"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}]
        return render(self._checkpoint.processor, turns)
