"""A checkpoint's model and processor together: images and questions in, answers out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.core import memory, preprocessing
from models.auto import family_of, from_pretrained
from models.engine.model import VisionLanguageModel
from models.engine.relevance import QuestionEmbeddings
from models.errors import CommandError
from models.io.hashes import of_file
from models.io.hub import find_checkpoint
from models.io.table import abstract_model
from models.io.untrusted import parsing
from models.processor import load_processor, render
from models.relevance import Relevance

_GRIDS = ("image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "batch_num_images")
BUCKET = 32
"""Runs pad prompts to a multiple of this, twice what `generate` does: those of one run then mostly share programs."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch as the processor gives it."""

    input_ids: np.ndarray  # [B, S] integers
    pixel_values: np.ndarray | None  # [images, C, height, width] float32, with tiles for LLaVA-NeXT; Qwen's patches
    attention_mask: np.ndarray  # [B, S]
    image_sizes: np.ndarray | None = None  # [images, 2], of LLaVA-NeXT's processor
    batch_num_images: np.ndarray | None = None  # [rows with images], of LLaVA-OneVision's, which cuts lone images alone
    relevance: QuestionEmbeddings | None = None  # the rows' questions, of a checkpoint with a CLIP
    image_grid_thw: np.ndarray | None = None  # [images, 3], of Qwen's processor
    pixel_values_videos: np.ndarray | None = None  # the same of videos
    video_grid_thw: np.ndarray | None = None
    second_per_grid_ts: np.ndarray | None = None  # [videos]
    border: np.ndarray | None = None  # [images, N] bool, visual tokens of padding, where cuts should take these last

    @property
    def named(self) -> dict[str, Any]:
        """What a model's `prompt`, `generate` and `stream` take, by their names."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model with its processor.

    Attributes:
      folder: where it was read from.
      llava: the model.
      processor: its Hugging Face processor.
      clip: tells how relevant visual tokens are to what is asked, or None.
    """

    folder: Path
    llava: VisionLanguageModel
    processor: Any
    clip: Relevance | None = None

    @property
    def identity(self) -> dict[str, str]:
        """Checksums of what was loaded, as records of a run hold them."""
        clip = {} if self.clip is None else {"clip_sha256": checksum(self.clip.folder)}
        return {"model_sha256": checksum(self.folder)} | clip

    def encode(self, images: Sequence[Sequence[Any]], prompts: Sequence[str]) -> Inputs:
        """Put prompts into the checkpoint's chat template and run its processor; see `encode_turns`."""
        turns = [[user(prompt, images=len(own))] for prompt, own in zip(prompts, images, strict=True)]
        return self.encode_turns(images, turns)

    def encode_turns(
        self,
        images: Sequence[Sequence[Any]],
        conversations: Sequence[list[dict[str, Any]]],
        *,
        videos: Sequence[Any] = (),
    ) -> Inputs:
        """Put conversations into the checkpoint's chat template and run its processor.

        Args:
          images: for each conversation its images, PIL or uint8 [height, width, 3].
          conversations: turns as chat templates take them, the user's last; each becomes a row.
          videos: of all conversations in order, as `experiments.data.videos.Clip`.
        """
        if videos and getattr(self.processor, "video_processor", None) is None:
            raise CommandError(f"{self.folder}: {self.llava.model_type} models take no video; qwen2_5_vl models do")
        for turns in conversations:
            self._check_texts(turns)
        texts = [render(self.processor, turns) for turns in conversations]
        questions = [_question(turns) for turns in conversations]
        return self.encode_texts(images, texts, questions=questions, videos=videos)

    def encode_texts(
        self,
        images: Sequence[Sequence[Any]],
        texts: Sequence[str],
        *,
        questions: Sequence[str] | None = None,
        border: str = "keep",
        videos: Sequence[Any] = (),
    ) -> Inputs:
        """Run the checkpoint's processor on whole prompts.

        Args:
          images: for each prompt its images, PIL or uint8 [height, width, 3].
          texts: the prompts, with a placeholder for each image; each becomes a row.
          questions: what a CLIP is told of each, where the checkpoint has one.
          border: what becomes of visual tokens that show nothing but padding: "keep" treats them as all others, "last"
            has cuts take them after all others, with "drop" they do not enter the decoder.
          videos: of all prompts in order; each has a placeholder too.
        """
        apart = [list(own) for own in images if len(own)]  # as transformers' chat templates pass them on
        flat = [image for own in apart for image in own]
        more = {"videos": [one.frames for one in videos], "rates": [one.rate for one in videos]} if videos else {}
        with parsing("what is asked", CommandError, "cannot be packed by the checkpoint's processor"):
            out = self.processor(images=apart or None, text=list(texts), padding=True, return_tensors="np", **more)
        relevance = None if self.clip is None or questions is None else self.clip(questions)
        inputs = Inputs(
            input_ids=out["input_ids"],
            pixel_values=out.get("pixel_values"),
            attention_mask=out["attention_mask"],
            image_sizes=out.get("image_sizes"),
            relevance=relevance,
            **{name: out.get(name) for name in _GRIDS},
        )
        if border == "keep" or not flat:
            return inputs
        where = np.stack([self.border(image) for image in flat])
        if border == "last":
            return dataclasses.replace(inputs, border=where)
        enters = inputs.attention_mask.astype(bool)  # a copy
        enters[inputs.input_ids == self.llava.config.image_token_id] &= ~where.reshape(-1)
        return dataclasses.replace(inputs, attention_mask=enters)

    def border(self, image: Any) -> np.ndarray:
        """[N] bool, which of an image's visual tokens show nothing but the padding around it."""
        vision, first = self.llava.config.vision, self.llava.config.keep_class_token
        side = vision.image_size // vision.patch_size
        if self.image_aspect_ratio != "pad":
            return np.zeros(side * side + first, bool)
        return np.pad(preprocessing.border(preprocessing.size_of(image), side), (int(first), 0))

    @property
    def image_aspect_ratio(self) -> str:
        """How its images become squares, see `experiments.core.preprocessing`."""
        return preprocessing.aspect_ratio_of(self.processor.image_processor)

    def check_length(self, text: str) -> None:
        """Raise CommandError, without the minute that tokens take, for what has too many characters to fit."""
        context = self.llava.config.text.max_positions
        if (least := len(text) // self._longest_token) > context:
            raise CommandError(f"its prompt has at least {least} tokens; the model's context is {context}")

    @functools.cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.processor.tokenizer.get_vocab()))

    def _check_texts(self, turns: list[dict[str, Any]]) -> None:
        """Raise CommandError where what the user says is not text, or holds an image's placeholder."""
        placeholders = [getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video")]
        for part in (part for turn in turns if turn["role"] == "user" for part in turn["content"]):
            text = part.get("text", "")
            if not_utf8(text):
                raise CommandError(f"what is asked is not UTF-8: {text!r}")
            self.check_length(text)
            for placeholder in filter(None, placeholders):
                if placeholder in text:
                    raise CommandError(f"what is asked holds {placeholder}, which stands for an image; leave it out")

    def decode(self, tokens: Any) -> list[str]:
        """New tokens [B, T] -> stripped texts, special tokens left out."""
        return [
            text.strip() for text in self.processor.tokenizer.batch_decode(np.asarray(tokens), skip_special_tokens=True)
        ]

    def seen(self, pixels: Any) -> np.ndarray:
        """Pixels [..., C, height, width] of images as the tower sees them, cropped and scaled, as uint8 with C last."""
        mean, std = (np.asarray(getattr(self.processor.image_processor, f"image_{x}")) for x in ("mean", "std"))
        colours = np.moveaxis(np.asarray(pixels, np.float64), -3, -1) * std + mean
        return np.clip(np.rint(colours * 255), 0, 255).astype(np.uint8)


def user(text: str, *, images: int = 0, videos: int = 0) -> dict[str, Any]:
    """What a user says, behind images and videos, as chat templates take it."""
    media = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


def _question(turns: list[dict[str, Any]]) -> str:
    """What the last turn asks, without the template."""
    content = turns[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def load(
    source: str,
    *,
    dtype: str,
    revision: str | None = None,
    clip: str | None = None,
    clip_revision: str | None = None,
    image_aspect_ratio: str = "checkpoint",
    request: memory.Request | None = None,
) -> Checkpoint:
    """Load model and processor, and a CLIP where one is named.

    Args:
      source: a folder, or a model id on the Hugging Face hub.
      dtype: name of a float.
      revision: branch, tag or commit on the hub; None is its main branch.
      clip: as `source`, for a CLIP; None for none.
      clip_revision: as `revision`.
      image_aspect_ratio: see `experiments.core.preprocessing`.
      request: what will be asked at a time, where that is known; what cannot fit is refused before weights are read.

    Raises:
      CommandError: `request` does not fit; there is no such folder; it has no processor that fits, or none that can do
        `image_aspect_ratio`; or the CLIP does not go with the model.
      ConfigError, CheckpointError, FileNotFoundError: see `Llava.from_pretrained` and `Relevance.from_pretrained`.
    """
    for name in (source, *([] if clip is None else [clip])):
        _check_folder(name)
    folder = find_checkpoint(source, revision=revision)
    _, config = family_of(folder)  # what is wrong with the small files shows before the weights are read
    memory.check_config(config, jnp.dtype(dtype).itemsize, request)
    processor = _processor(folder, image_aspect_ratio)
    checkpoint = Checkpoint(folder, from_pretrained(folder, dtype=jnp.dtype(dtype)), processor)
    try:
        inputs = checkpoint.encode([[np.zeros((8, 8, 3), np.uint8)]], ["What is this?"])
        checkpoint.llava.prompt(**inputs.named)
    except (TypeError, ValueError) as error:  # what it gives is not what the model takes
        raise CommandError(f"{folder}: its processor does not fit its model: {error}") from error
    if clip is None:
        return checkpoint
    relevance = Relevance.from_pretrained(clip, dtype=jnp.dtype(dtype), revision=clip_revision)
    try:
        relevance.check(checkpoint.llava)
    except ValueError as error:
        raise CommandError(f"{clip} and {source} do not go together: {error}") from error
    return dataclasses.replace(checkpoint, clip=relevance)


def load_without_weights(folder: Path, *, image_aspect_ratio: str = "checkpoint") -> Checkpoint:
    """What packs prompts for a checkpoint that was loaded elsewhere, from its `folder`: a model of shapes alone."""
    family, config = family_of(folder)
    llava = abstract_model(lambda rngs: family(config, rngs=rngs))
    return Checkpoint(folder, llava, _processor(folder, image_aspect_ratio))


def _check_folder(name: str) -> None:
    if Path(name).parent.is_dir() and not os.path.lexists(name):
        raise CommandError(f"{name}: no such folder")  # and the hub need not be asked


def _processor(folder: Path, image_aspect_ratio: str) -> Any:
    processor = load_processor(folder)
    processor.image_processor = preprocessing.with_aspect_ratio(processor.image_processor, image_aspect_ratio)
    return processor


def check_square(source: str, llava: VisionLanguageModel) -> None:
    """Raise CommandError for a model whose images differ in their number of visual tokens."""
    if not llava.square:
        raise CommandError(
            f"{source} is a {llava.model_type}, whose images have any number of visual tokens; this is for models that "
            "see each as one square, at equal cost (`eval --questions=FILE` takes both)"
        )


def not_utf8(text: str) -> bool:
    """Whether a command line or a terminal gave bytes that are no text."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def checksum(folder: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts):
            total.update(f"{name.as_posix()} {of_file(path)}\n".encode())
    return total.hexdigest()
