"""The worker of an evaluation on a question file: holds the model and asks it, row by row safe from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments import loading, methods, results
from experiments.cli import CommandError, one_line
from experiments.evaluation.file_questions import FileQuestions
from experiments.evaluation.questions import Sample
from experiments.evaluation.settings import Files, Settings
from models.config import read_hf_config
from models.engine.plan import TOWER, Carve, Schedule, parse
from tokencarve_jax import plan

# Whole prompts; {images} is a placeholder and a line break for each. Those of LLaVA's `conv_templates`.
CONVERSATIONS = {
    "vicuna_v1": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: {images}{text} ASSISTANT:",
    "checkpoint": "",  # its chat template
}


class FileAsker:
    """Loads the checkpoint once and is asked for one batch after the other.

    Args:
      settings: of the evaluation, with `files`.

    Attributes:
      methods: what to compare, by name, as `carve` arguments.

    Raises:
      CommandError: the file cannot be read, or the model not be carved like that, or its images not be brought to a
        square like that.
      Whatever `experiments.loading.load` raises.
    """

    def __init__(self, settings: Settings):
        assert settings.files is not None
        self._settings, self._files = settings, settings.files
        self._questions = questions_of(self._files)
        self._checkpoint = loading.load(
            settings.model,
            dtype=settings.dtype,
            revision=settings.revision,
            image_aspect_ratio=self._files.image_aspect_ratio,
        )
        self._llava, processor = self._checkpoint.llava, self._checkpoint.processor
        if self._files.border != "keep" and self._checkpoint.image_aspect_ratio != "pad":
            raise CommandError(
                f"border {self._files.border!r} is for padded images; here they are "
                f"{self._checkpoint.image_aspect_ratio!r}"
            )
        keep, every = settings.keep, self._llava.config.tokens_per_image
        if self._llava.square:  # the same count for all images, however much of them is border
            try:
                keep = plan(every, keep).kept
            except ValueError as error:
                raise CommandError(f"keep={keep}: {error}") from error
        self.methods = methods.to_compare(self._llava, keep, settings.methods)
        if self._files.border != "keep" and any(c.place == TOWER for m in self.methods.values() for c in self._cuts(m)):
            raise CommandError(f"border {self._files.border!r}: a cut in the vision tower does not know of border")
        self._placeholder = processor.image_token
        self._max_new_tokens = self._files.max_new_tokens or self._questions.max_new_tokens
        hf, _ = read_hf_config(self._checkpoint.folder)
        self._context = min(hf.text_config.max_position_embeddings, processor.tokenizer.model_max_length)

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers."""
        return {
            "model_sha256": loading.checksum(self._checkpoint.folder),
            "methods": list(self.methods),
            "visual_tokens": self._llava.config.tokens_per_image,
            "image_aspect_ratio": self._checkpoint.image_aspect_ratio,
            "versions": results.versions(),
            "code_sha256": results.code_checksum(),
            **self._questions.identity(),
        }

    def machine(self) -> dict[str, Any]:
        """What this worker runs on."""
        return results.machine()

    def ask(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Ask every method about rows of one batch.

        Returns:
          One record per row: `said` by method, or `error`.
        """
        samples, errors = dict[int, Sample](), dict[int, str]()
        for index in indices:
            try:
                samples[index] = self._fitting(self._questions.sample(index))
            except CommandError as error:
                errors[index] = str(error)
        said = self._answer(samples, errors) if samples else {}
        return [
            {"sample": index} | ({"error": errors[index]} if index in errors else {"said": said[index]})
            for index in indices
        ]

    def _fitting(self, sample: Sample) -> Sample:
        """The sample, its prompt not longer than the model's context."""
        tokens = len(self._checkpoint.processor.tokenizer(self._prompt(sample), verbose=False)["input_ids"])
        tokens += len(sample.images) * (self._llava.config.tokens_per_image - 1)
        if tokens > self._context:
            raise CommandError(f"its prompt has {tokens} tokens; the model's context is {self._context}")
        return sample

    def _prompt(self, sample: Sample) -> str:
        text = sample.text
        while self._placeholder in text:
            text = text.replace(self._placeholder, "")
        template = CONVERSATIONS[self._files.conversation]
        if template:
            return template.format(images=f"{self._placeholder}\n" * len(sample.images), text=text)
        content = [*[{"type": "image"}] * len(sample.images), {"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}]
        return self._checkpoint.processor.apply_chat_template(turns, add_generation_prompt=True)

    def _answer(self, samples: dict[int, Sample], errors: dict[int, str]) -> dict[int, dict[str, str]]:
        """What every method says to each sample. One that cannot be encoded goes to `errors`, its neighbours do not."""
        try:
            inputs = self._encode(list(samples.values()))
            most = self._most(inputs)
        except (ValueError, TypeError) as error:
            if len(samples) == 1:
                errors |= dict.fromkeys(samples, f"{type(error).__name__}: {one_line(error)}")
                return {}
            alone = [self._answer({index: sample}, errors) for index, sample in samples.items()]
            return {index: said for one in alone for index, said in one.items()}
        said = {index: dict[str, str]() for index in samples}
        for name, carve in self.methods.items():
            tokens = self._llava.generate(
                inputs.input_ids,
                inputs.pixel_values,
                attention_mask=inputs.attention_mask,
                image_sizes=inputs.image_sizes,
                border=inputs.border,
                max_new_tokens=self._max_new_tokens,
                carve=self._at_most(carve, most),
                seed=(self._settings.seed * 1_000_003 + next(iter(samples))) % 2**32,  # whoever asks it
            )
            for index, text in zip(samples, self._checkpoint.decode(tokens), strict=False):
                said[index][name] = text
        return said

    def _encode(self, samples: list[Sample]) -> loading.Inputs:
        """A batch of full size: the last sample is repeated where there are fewer, so that nothing compiles anew."""
        samples = samples + samples[-1:] * (self._settings.batch_size - len(samples))
        return self._checkpoint.encode_texts(
            [sample.images for sample in samples],
            [self._prompt(sample) for sample in samples],
            border=self._files.border,
        )

    def _most(self, inputs: loading.Inputs) -> int:
        """How many visual tokens a row of the batch has room for."""
        prompt = self._llava.prompt(
            inputs.input_ids, inputs.pixel_values, inputs.attention_mask, image_sizes=inputs.image_sizes
        )
        return prompt.visual_slots.shape[1]

    def _at_most(self, carve: Carve, most: int) -> Carve:
        """Without its border, a thin strip of an image has fewer tokens than a cut keeps: then it keeps them all."""
        if self._files.border != "drop" or carve is None:
            return carve
        return tuple(
            dataclasses.replace(cut, keep=min(cut.keep, most)) if isinstance(cut.keep, int) and most else cut
            for cut in self._cuts(carve)
        )

    def _cuts(self, carve: Carve) -> Schedule:
        return parse(carve, num_layers=self._llava.config.text.num_layers)


def questions_of(files: Files) -> FileQuestions:
    """The questions that settings name."""
    return FileQuestions(files.questions, files.images, limit=files.limit)
