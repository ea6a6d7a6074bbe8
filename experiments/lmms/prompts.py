"""What LLaVA asks where lmms-eval asks something else: functions that the tasks' YAML files name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.data.formats import LETTER, mmbench_question


def mmbench_doc_to_text(doc: Mapping[str, Any]) -> str:
    """Hint, question and options, a line each, without lmms-eval's sentence before the options."""
    return f"{mmbench_question(doc)[0]}\n{LETTER}"


def seed_doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """An image, or the frame in the middle of a video, of which LLaVA sees no other."""
    frames = doc["image"]
    return [frames[len(frames) // 2].convert("RGB")]
