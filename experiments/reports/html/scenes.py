"""The gallery of a run for the page's script: images, answers and patch maps by method and budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.metrics.summary import BASELINE
from experiments.reports.html.reading import image
from experiments.reports.tables import missing

_LOOKS_AT = {  # evidence, as `tokencarve_jax.EVIDENCE` names it, in words
    "query_attention": "the attention of the question's last token",
    "next_attention": "the attention of the question's last token in the next layer",
    "text_attention": "the attention of the text tokens",
    "keys": "the tokens' keys",
    "text_keys": "the text tokens' keys",
    "text_hidden": "the text tokens' hidden states",
    "normed_hidden": "the tokens behind the decoder's last norm",
    "head_attention": "each head's attention of the text tokens",
    "previous_hidden": "what entered the layer before",
    "attention_output": "what attention adds",
    "class_attention": "the attention of the tower's class token",
    "global_attention": "the attention of all tokens of the tower",
    "middle_attention": "the attention of all tokens in the tower's middle",
    "tower_keys": "the tower's keys",
    "tower_features": "the tower's features",
    "text": "the question's words",
    "relevance": "relevance to the question",
    "relevance_dot": "relevance to the question",
    "key": "chance",
}
_LARGEST_GRID = 256


def gallery(report: Mapping[str, Any], methods: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any] | None:
    """What the script takes.

    Args:
      report: with a "gallery", each of whose maps names one of `methods` in "method" or "cell", and "samples" with
        their "predictions".
      methods: each with `key` (as maps and predictions name it), `method`, `tokens`, and where it cuts and what it
        reads.
      folder: with the images.

    Returns:
      `every` (visual tokens before a cut), `baseline`, `methods` and `scenes`; None where there is nothing to show.
      Scenes that hold what is not a number are left out.
    """
    by_key = {row["key"]: row for row in methods}
    every = next((row["tokens"] for row in methods if row["method"] == BASELINE), None)
    records = [record for record in report.get("gallery", ()) if _numbers_only(record)]
    if not records or missing(every):
        return None
    known: dict[str, dict[str, str]] = {}
    for row in methods:
        known.setdefault(row["method"], {"name": row["method"], "how": _how(row), "place": str(row.get("place", ""))})
    predictions = {  # without those of cells that no table shows
        sample["sample"]: {key: text for key, text in sample["predictions"].items() if key in by_key}
        for sample in report["samples"]
    }
    return {
        "every": every,
        "baseline": BASELINE,
        "methods": list(known.values()),
        "scenes": [_scene(record, by_key, predictions.get(record["sample"], {}), folder) for record in records],
    }


def _scene(
    record: Mapping[str, Any], by_key: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    if not 0 < record["grid"] <= _LARGEST_GRID:
        raise ValueError(f"question {record['sample']}: a grid of {record['grid']} x {record['grid']} patches")
    patches = set(range(record["grid"] ** 2))
    maps: dict[str, dict[int, dict[str, Any]]] = {}
    for one in record["maps"]:
        row = by_key[one["cell"] if "cell" in one else one["method"]]
        hosts = {host for _, host in one["merged"] if host != -1}
        if not {*one["kept"], *(patch for patch, _ in one["merged"]), *hosts} <= patches:
            raise ValueError(f"question {record['sample']}: a patch map names patches outside its image")
        if row["method"] != BASELINE:  # the script knows how everything looks
            tokens = one.get("visual_tokens", row["tokens"])
            maps.setdefault(row["method"], {})[tokens] = {"kept": one["kept"], "merged": one["merged"]}
    answers: dict[str, dict[int, str]] = {}
    for key, text in predictions.items():
        answers.setdefault(by_key[key]["method"], {})[by_key[key]["tokens"]] = text
    about = {name: record[name] for name in ("sample", "family", "question", "answer", "grid", "ranks")}
    return about | {"maps": maps, "predictions": answers, "image": image(folder, record["sample"])}


def _numbers_only(record: Mapping[str, Any]) -> bool:
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:
        return False
    return True


def _how(row: Mapping[str, Any]) -> str:
    """By what a method decides, in words."""
    reads = [name for name in str(row.get("reads", "")).split(", ") if name in _LOOKS_AT]
    return " and ".join(_LOOKS_AT[name] for name in reads) or "the tokens themselves"
