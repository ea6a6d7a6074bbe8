"""A checkpoint's model and processor together: images and questions in, answers out."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import memory
from experiments.cli import CommandError
from models.auto import family_of, from_pretrained
from models.checkpoint.hub import find_checkpoint
from models.engine.model import VisionLanguageModel
from models.foreign import parsing
from models.processor import load_processor, render


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch as the processor gives it.

    Attributes:
      input_ids: [B, S] integers.
      pixel_values: [images, C, height, width] float32, with tiles for LLaVA-NeXT.
      attention_mask: [B, S].
      image_sizes: [images, 2], of LLaVA-NeXT's processor alone.
    """

    input_ids: np.ndarray
    pixel_values: np.ndarray
    attention_mask: np.ndarray
    image_sizes: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model with its processor.

    Attributes:
      folder: where it was read from.
      llava: the model.
      processor: its Hugging Face processor.
    """

    folder: Path
    llava: VisionLanguageModel
    processor: Any

    def encode(self, images: Sequence[Sequence[Any]], prompts: Sequence[str]) -> Inputs:
        """Put prompts into the checkpoint's chat template and run its processor.

        Args:
          images: for each prompt its images, PIL or uint8 [height, width, 3].
          prompts: what is asked.

        Returns:
          One row per prompt.
        """
        turns = []
        for prompt, own in zip(prompts, images, strict=True):
            content = [*[{"type": "image"}] * len(own), {"type": "text", "text": prompt}]
            turns.append([{"role": "user", "content": content}])
        return self.encode_turns(images, turns)

    def encode_turns(self, images: Sequence[Sequence[Any]], conversations: Sequence[list[dict[str, Any]]]) -> Inputs:
        """Put conversations into the checkpoint's chat template and run its processor.

        Args:
          images: for each conversation its images, PIL or uint8 [height, width, 3].
          conversations: turns as chat templates take them, the user's last.

        Returns:
          One row per conversation.
        """
        for turns in conversations:
            self._check_texts(turns)
        texts = [render(self.processor, turns) for turns in conversations]
        flat = [image for own in images for image in own]
        with parsing("what is asked", CommandError, "cannot be packed by the checkpoint's processor"):
            out = self.processor(images=flat, text=texts, padding=True, return_tensors="np")
        return Inputs(out["input_ids"], out["pixel_values"], out["attention_mask"], out.get("image_sizes"))

    def _check_texts(self, turns: list[dict[str, Any]]) -> None:
        """What the user says must be text, and hold no placeholder of an image that there is not.

        Raises:
          CommandError: it is neither.
        """
        placeholder = getattr(self.processor, "image_token", None)
        for part in (part for turn in turns if turn["role"] == "user" for part in turn["content"]):
            text = part.get("text", "")
            if not_utf8(text):
                raise CommandError(f"what is asked is not UTF-8: {text!r}")
            if placeholder and placeholder in text:
                raise CommandError(f"what is asked holds {placeholder}, which stands for an image; leave it out")

    def decode(self, tokens: Any) -> list[str]:
        """New tokens [B, T] -> stripped texts, special tokens left out."""
        return [
            text.strip() for text in self.processor.tokenizer.batch_decode(np.asarray(tokens), skip_special_tokens=True)
        ]

    def seen(self, pixel_values: np.ndarray) -> np.ndarray:
        """The images as the tower sees them, cropped and scaled: uint8 [images, height, width, 3]."""
        mean, std = (np.asarray(getattr(self.processor.image_processor, f"image_{x}")) for x in ("mean", "std"))
        pixels = np.moveaxis(np.asarray(pixel_values, np.float64), 1, -1) * std + mean
        return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)


def load(source: str, *, dtype: str, revision: str | None = None) -> Checkpoint:
    """Load model and processor.

    Args:
      source: a folder, or a model id on the Hugging Face hub.
      dtype: name of a float.
      revision: branch, tag or commit on the hub; None is its main branch.

    Returns:
      Both.

    Raises:
      CommandError: there is no such folder, or it has no processor that fits.
      ConfigError, CheckpointError, FileNotFoundError: see `Llava.from_pretrained`.
    """
    if Path(source).parent.is_dir() and not os.path.lexists(source):
        raise CommandError(f"{source}: no such folder")  # and the hub need not be asked
    folder = find_checkpoint(source, revision=revision)
    _, config = family_of(folder)  # what is wrong with the small files shows before the weights are read
    memory.check_weights(config, jnp.dtype(dtype).itemsize)
    processor = load_processor(folder)
    checkpoint = Checkpoint(folder, from_pretrained(folder, dtype=jnp.dtype(dtype)), processor)
    try:
        inputs = checkpoint.encode([[np.zeros((8, 8, 3), np.uint8)]], ["What is this?"])
        checkpoint.llava.prompt(**dataclasses.asdict(inputs))
    except ValueError as error:
        raise CommandError(f"{folder}: its processor does not fit its model: {error}") from error
    return checkpoint


def not_utf8(text: str) -> bool:
    """Whether a command line or a terminal gave bytes that are no text."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def checksum(folder: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts):
            with path.open("rb") as file:
                total.update(f"{name.as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
