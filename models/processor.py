"""A checkpoint's Hugging Face processor: guarded, and its sizes checked before they are used."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.config import Fields
from models.errors import CommandError
from models.io.hub import transformers
from models.io.untrusted import file_problem, limited, parsing, read_json
from models.onevision_processor import CLASS as ONEVISION
from models.onevision_processor import OnevisionProcessor
from models.qwen_processor import CLASSES, VIDEO_FILE, WITH_VIDEO, QwenProcessor

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
    VIDEO_FILE,
)
_IMAGES = "(CLIP|Llava|LlavaNext|LlavaOnevision|Qwen2VL)"
# transformers has hundreds of others, of which some ask the hub, and some take gigabytes for a small image.
_TYPES = {
    "video_processor_type": "Qwen[23]VLVideoProcessor",
    "processor_class": "(Llava|LlavaNext|LlavaOnevision|Qwen2_5_VL|Qwen3VL)Processor",
    "image_processor_type": f"{_IMAGES}(ImageProcessor|FeatureExtractor)(Fast|Pil)?",
    "feature_extractor_type": f"{_IMAGES}(ImageProcessor|FeatureExtractor)(Fast|Pil)?",
}
_MOST_TILES = 2**6
TEMPLATE = "chat_template.jinja"
TEMPLATE_S, TEMPLATE_BYTES = 1.0, 2**27  # a template takes milliseconds
_MOST_PIXELS = 2**13  # along a side, as for a tower
_MOST_CHARACTERS = 10**7  # of a rendered prompt


def load_processor(folder: Path) -> Any:
    """A processor with image processor and chat template, tried on a small image and a short question.

    It is transformers', for Qwen-VL a `QwenProcessor`, or an `OnevisionProcessor`. Only the folder's chat template is
    run, in Jinja's sandbox; the hub is not asked.

    Raises:
      CommandError: there is none that can be loaded and used; names the file.
    """
    classes = _check_files(folder)
    local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        with parsing(folder, CommandError):
            # Pillow's resizing, also where torchvision is installed: the same pixels on every machine.
            processor: Any
            if CLASSES & classes:
                processor = QwenProcessor.from_pretrained(folder, videos=WITH_VIDEO in classes, **local)
            elif ONEVISION in classes:
                processor = OnevisionProcessor.from_pretrained(folder, **local)
            else:
                processor = transformers().AutoProcessor.from_pretrained(folder, backend="pil", **local)
    except CommandError as error:
        where, cause = _culprit(folder, local), str(error).removeprefix(f"{folder} cannot be read ")
        raise CommandError(f"{folder} has no processor that can be loaded: {where} {cause}") from error
    if not getattr(processor, "chat_template", None) or not hasattr(processor, "image_processor"):
        raise CommandError(f"{folder}: its processor needs an image processor and a chat template")
    _check_sizes(folder, processor)
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = render(processor, turns, folder / TEMPLATE)
    with parsing(folder, CommandError, "has a processor that fails on a small image"):
        image = np.full((8, 8, 3), 9, np.uint8)
        out = processor(images=[image], text=[text], padding=True, return_tensors="np")
        if isinstance(processor, QwenProcessor) and processor.video_processor is not None:
            processor.video_processor([image], return_tensors="np")
        if not np.isfinite(out["pixel_values"]).all():
            raise CommandError(f"{folder}: its processor gives numbers that are not finite; see image_mean, image_std")
    return processor


def render(processor: Any, turns: list[dict[str, Any]], where: object = TEMPLATE) -> str:
    """Put a conversation into the chat template, which runs in Jinja's sandbox and within limits.

    Raises:
      CommandError: the template fails, or takes more than `TEMPLATE_S` or `TEMPLATE_BYTES`.
    """
    with parsing(where, CommandError), limited(TEMPLATE_S, TEMPLATE_BYTES):
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
    if not isinstance(text, str) or len(text) > _MOST_CHARACTERS:
        raise CommandError(f"{where} makes more than {_MOST_CHARACTERS} characters of a conversation, or not a text")
    return text


def _check_files(folder: Path) -> set[str]:
    """The processor classes that files name; CommandError for what is no regular file, no JSON, or not in `_TYPES`."""
    classes = set[str]()
    for path in (folder / name for name in (*_FILES, TEMPLATE)):
        if not os.path.lexists(path):
            continue
        if path.suffix == ".json":
            found = read_json(path, CommandError)
            classes.add(str(found.get("processor_class")))
            nested = found.get("image_processor")
            for part in (found, nested if isinstance(nested, dict) else {}):
                for field in part.keys() & _TYPES.keys():
                    if part[field] is not None and not re.fullmatch(_TYPES[field], str(part[field])):
                        raise CommandError(f"{path}: {field} is {part[field]!r}, which no supported model has")
        elif problem := file_problem(path):
            raise CommandError(f"{path} {problem}")
    return classes


def _culprit(folder: Path, local: Mapping[str, Any]) -> str:
    """The files of the part that fails by itself."""
    try:
        with parsing(folder, CommandError):
            transformers().AutoTokenizer.from_pretrained(folder, **local)
    except CommandError:
        names: tuple[str, ...] = _FILES[:4]
    else:
        names = _FILES[4:6]
    return " or ".join(name for name in names if (folder / name).exists()) or f"there is no {names[0]}"


def _check_sizes(folder: Path, processor: Any) -> None:
    """Check the numbers that decide how much memory the processor needs; CommandError names all wrong ones."""
    images = processor.image_processor
    videos = processor.video_processor if isinstance(processor, QwenProcessor) else None
    problems: list[str] = []
    # Qwen's sizes are the least and the most pixels of an image, the others' are sides.
    most = _MOST_PIXELS**2 if isinstance(processor, QwenProcessor) else _MOST_PIXELS
    parts = [(images, "size", ""), (images, "crop_size", "")]
    if videos not in (None, images):
        parts.append((videos, "size", f"{VIDEO_FILE}: "))
    for part, name, where in parts:
        sizes = getattr(part, name, None)
        sizes = {key: value for key, value in dict(sizes or {}).items() if value is not None}
        if not sizes and (name == "size" or getattr(part, "do_center_crop", False)):
            problems.append(f"{where}{name} is empty; expected sides in pixels")
        fields = Fields(sizes, f"{where}{name}.")
        for key in sizes:
            fields.whole(key, 1, most)
        problems += fields.problems
    if (pinpoints := getattr(images, "image_grid_pinpoints", None)) and not problems:
        with parsing(folder, CommandError, "has a processor with image_grid_pinpoints that cannot be used"):
            side = min(value for value in dict(images.crop_size or images.size).values() if value)
            if max(math.prod(pair) for pair in pinpoints) > _MOST_TILES * side**2:
                problems.append(f"image_grid_pinpoints make more than {_MOST_TILES} tiles of {side} x {side}")
    fields = Fields(processor)
    if fields.get("patch_size") is not None:
        fields.whole("patch_size", 1, _MOST_PIXELS)
    if fields.get("num_additional_image_tokens") is not None:
        fields.whole("num_additional_image_tokens", 0, 16)
    problems += fields.problems
    if problems:
        names = " or ".join(name for name in _FILES[4:6] if (folder / name).exists())
        raise CommandError(f"{folder / names}: {'; '.join(problems)}")
