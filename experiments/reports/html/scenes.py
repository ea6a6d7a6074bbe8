"""The gallery of a run for the page's script: images, answers and carve maps by method and budget."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.metrics.summary import BASELINE
from experiments.reports.gallery import image_path

_LOOKS_AT = {  # evidence, as `tokencarve_jax.EVIDENCE` names it, in words
    "query_attention": "the attention of the question's last token",
    "next_attention": "the attention of the question's last token in the next layer",
    "text_attention": "the attention of the text tokens",
    "keys": "the tokens' keys",
    "text_keys": "the text tokens' keys",
    "text_hidden": "the text tokens' hidden states",
    "attention_output": "what attention adds",
    "class_attention": "the attention of the tower's class token",
    "middle_attention": "the attention of the class token in the tower's middle",
    "tower_keys": "the tower's keys",
    "tower_features": "the tower's features",
    "text": "the question's words",
    "relevance": "relevance to the question",
    "key": "chance",
}


def gallery(
    records: Sequence[Mapping[str, Any]],
    methods: Sequence[Mapping[str, Any]],
    said: Mapping[int, Mapping[str, str]],
    folder: Path,
) -> dict[str, Any] | None:
    """What the script takes.

    Args:
      records: "gallery" of results.json; each of its maps names one of `methods` in "method" or "cell".
      methods: each with `key` (as maps and answers name it), `method`, `tokens`, and where it cuts and what it reads.
      said: answers by question and key of the method.
      folder: with the images.

    Returns:
      `every` (visual tokens before a cut), `methods` and `scenes`; None without records.
    """
    if not records:
        return None
    by_key = {row["key"]: row for row in methods}
    known: dict[str, dict[str, str]] = {}
    for row in methods:
        known.setdefault(row["method"], {"name": row["method"], "how": _how(row), "place": str(row.get("place", ""))})
    return {
        "every": next(row["tokens"] for row in methods if row["method"] == BASELINE),
        "baseline": BASELINE,
        "methods": list(known.values()),
        "scenes": [_scene(record, by_key, said.get(record["sample"], {}), folder) for record in records],
    }


def _scene(
    record: Mapping[str, Any], by_key: Mapping[str, Mapping[str, Any]], said: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    maps: dict[str, dict[int, dict[str, Any]]] = {}
    for one in record["maps"]:
        row = by_key[one["cell"] if "cell" in one else one["method"]]
        if row["method"] == BASELINE:  # the script knows how everything looks
            continue
        tokens = one.get("visual_tokens", row["tokens"])
        maps.setdefault(row["method"], {})[tokens] = {"kept": one["kept"], "merged": one["merged"]}
    answers: dict[str, dict[int, str]] = {}
    for key, text in said.items():
        answers.setdefault(by_key[key]["method"], {})[by_key[key]["tokens"]] = text
    about = {name: record[name] for name in ("sample", "family", "question", "answer", "grid", "ranks")}
    return about | {"maps": maps, "said": answers, "image": _image(image_path(folder, record["sample"]))}


def _image(path: Path) -> str | None:
    """As a data URI; None where there is no file."""
    try:
        return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
    except FileNotFoundError:
        return None


def _how(row: Mapping[str, Any]) -> str:
    """By what a method decides, in words."""
    reads = [name for name in str(row.get("reads", "")).split(", ") if name in _LOOKS_AT]
    return " and ".join(_LOOKS_AT[name] for name in reads) or "the tokens themselves"
