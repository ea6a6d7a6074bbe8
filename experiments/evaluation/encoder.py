"""From samples to a batch of whole prompts: the conversation around a question, and whether it fits the model."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.cli import CommandError
from experiments.evaluation.questions import Sample
from experiments.loading import Checkpoint, Inputs
from models.config import read_hf_config

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
    """

    def __init__(self, checkpoint: Checkpoint, *, conversation: str = "checkpoint", border: str = "keep"):
        self._checkpoint, self._template, self._border = checkpoint, CONVERSATIONS[conversation], border
        hf, _ = read_hf_config(checkpoint.folder)
        self._context = min(hf.text_config.max_position_embeddings, checkpoint.processor.tokenizer.model_max_length)

    def fitting(self, sample: Sample) -> Sample:
        """The sample.

        Raises:
          CommandError: its prompt is longer than the model's context.
        """
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
        return self._checkpoint.processor.apply_chat_template(turns, add_generation_prompt=True)
