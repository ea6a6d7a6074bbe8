"""From a checkpoint's `model_type` to its family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.engine.model import VisionLanguageModel
from models.families.llava import Llava
from models.families.llava_next import LlavaNext

FAMILIES = (Llava, LlavaNext)  # one row each; importing one makes it known to `VisionLanguageModel.family_of`


def family_of(folder: Path) -> tuple[type[VisionLanguageModel], Any]:
    """The family of a checkpoint folder, and its constants; errors of `VisionLanguageModel.family_of`."""
    return VisionLanguageModel.family_of(folder)


def from_pretrained(source: Any, **options: Any) -> VisionLanguageModel:
    """A model of whatever family the checkpoint is; arguments, result and errors of `Llava.from_pretrained`."""
    return VisionLanguageModel.from_pretrained(source, **options)
