"""For tests of reports: results.json of an evaluation and of a comparison, made up, in folders with their images."""

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.comparison.cells import default_methods
from experiments.data.scenes import make_scene
from experiments.metrics.summary import wilson
from experiments.reports.gallery import image_path
from experiments.reports.patch_maps.maps import patch_map

GRID = 24
EVERY = GRID * GRID
BUDGETS = (192, 128, 64)
FAMILIES = ("reading", "spatial", "hallucination")
SHARES = {"vanilla": 0.97, "tokencarve": 0.912, "random": 0.551}


def share(value: float, of: int = 900) -> dict[str, Any]:
    right = round(value * of)
    low, high = wilson(right, of)
    return {"right": right, "of": of, "share": right / of, "low": low, "high": high}


def accuracy(value: float) -> dict[str, Any]:
    return {family: share(value, 300) for family in FAMILIES} | {"overall": share(value)}


def method(name: str, *, tokens: int, flops: float) -> dict[str, Any]:
    value = SHARES[name]
    return {
        "method": name,
        "visual_tokens": tokens,
        "layer_average": float(tokens),
        "accuracy": accuracy(value),
        "of_vanilla": value / SHARES["vanilla"],
        "difference": value - SHARES["vanilla"],
        "difference_half_width": 0.015,
        "same_answer": value,
        "cache_bytes": 4000 * (tokens + 60),
        "prefill_s": 0.05 + tokens / 10_000,
        "prefill_runs": 20,
        "first_call_s": 3.0,
        "place": "" if name == "vanilla" else "decoder layer 2",
        "reads": {"tokencarve": "query_attention", "random": "key"}.get(name, ""),
        "paper": "",
        "flops": flops,
    }


def carved(order: np.ndarray, keep: int) -> dict[str, Any]:
    """The best of an order are kept, half as many again merge into one of them."""
    survivors = np.sort(order[:keep])
    assignment = np.full(EVERY, -1)
    assignment[survivors] = np.arange(keep)
    for number, patch in enumerate(order[keep : keep + keep // 2]):
        assignment[patch] = number % keep
    return patch_map(survivors, assignment, first=0, patches=EVERY)


def scene(sample: int, rng: np.random.Generator) -> dict[str, Any]:
    fused = rng.permutation(EVERY)
    maps = [{"method": "vanilla", "visual_tokens": EVERY, "answered": True, "kept": list(range(EVERY)), "merged": []}]
    for keep in BUDGETS:
        about = {"visual_tokens": keep, "answered": keep == 128}
        drawn = np.sort(rng.permutation(EVERY)[:keep]).tolist()
        maps.append({"method": "tokencarve", **about, **carved(np.argsort(fused), keep)})
        maps.append({"method": "random", **about, "kept": drawn, "merged": []})
    ranks = {name: (1 + rng.permutation(EVERY)).tolist() for name in ("attention", "information")}
    return {
        "sample": sample,
        "scene": sample // 3,
        "family": FAMILIES[sample % 3],
        "question": f"What word is on the purple sign number {sample + 1}?",
        "answer": "LEAF",
        "grid": GRID,
        "maps": maps,
        "ranks": {"tokencarve": ranks | {"fused": (1 + fused).tolist()}},
    }


def evaluation(folder: Path, *, scenes: int = 3) -> dict[str, Any]:
    """Write the folder of a made-up evaluation with so many scenes in its gallery; gives what results.json holds."""
    rng = np.random.default_rng(0)
    first = [scene(number, rng) for number in range(min(scenes, 3))]
    # Beyond three they are alike but for their names: nothing is compressed, so that sizes are what they would be.
    gallery = [first[number % 3] | {"sample": 3 * number, "scene": number} for number in range(scenes)]
    predictions = {"vanilla": "LEAF", "tokencarve": "LEAF", "random": "LAKE"}
    about = ("sample", "scene", "family", "question", "answer")
    report = {
        "kind": "eval",
        "command": ["python", "-m", "experiments.eval"],
        "date": "2026-11-27T10:00:00+00:00",
        "model": "experiments/tiny",
        "scenes": 300,
        "settings": {
            "methods": list(SHARES),
            "dtype": "float32",
            "batch_size": 6,
            "seed": 0,
            "decode_capacity": 32,
            "machine": {"processor": "a processor", "cores": 2, "backend": "cpu", "device": "cpu"},
            "versions": {"python": "3.11.7", "jax": "0.10.2"},
        },
        "methods": [
            method("vanilla", tokens=EVERY, flops=2.9e9),
            method("tokencarve", tokens=128, flops=1.9e9),
            method("random", tokens=128, flops=1.9e9),
        ],
        "gallery": gallery,
        "samples": [{name: one[name] for name in about} | {"predictions": predictions} for one in gallery],
    }
    for one in gallery:
        path = image_path(folder, one["sample"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_images()[one["scene"] % 3])
    write(folder, report)
    return report


def comparison(folder: Path) -> dict[str, Any]:
    """Write the folder of a made-up comparison of all methods; gives what results.json holds."""
    report, rng = evaluation(folder), np.random.default_rng(1)
    names = dict.fromkeys(["tokencarve", *default_methods(clip=True)])
    rows = [cell("vanilla", budget=None, basis=None, tokens=EVERY, right=0.97)]
    for budget in (128, 64):
        for basis, more in (("count", 0), ("compute", 200)):
            for number, name in enumerate(names):
                tokens = budget + (more if number % 2 else 0)
                rows.append(cell(name, budget=budget, basis=basis, tokens=tokens, right=float(rng.uniform(0.3, 0.95))))
    cells = {row["cell"]: row["tokens"] for row in rows}
    for record in report["gallery"]:
        record["maps"] = [
            {"cell": key, "kept": np.sort(rng.permutation(EVERY)[:tokens]).tolist(), "merged": []}
            for key, tokens in cells.items()
        ]
    for sample in report["samples"]:
        sample["predictions"] = {key: str(rng.choice(["LEAF", "LAKE"])) for key in cells}
    del report["methods"]
    report |= {"kind": "compare", "rows": rows, "source": "300 held-out scenes", "notes": ["A note."], "failed": []}
    write(folder, report)
    return report


def cell(name: str, *, budget: int | None, basis: str | None, tokens: int, right: float) -> dict[str, Any]:
    return {
        "budget": budget,
        "basis": basis,
        "why_not": "",
        "method": name,
        "cell": name if budget is None else f"{name} ({name}@2={tokens})",
        "tokens": tokens,
        "average": tokens / 2 + EVERY / 2,
        "flops": 1_000_000_000 + 3_000_000 * tokens,
        "place": "decoder layer 2",
        "reads": "query_attention",
        "accuracy": accuracy(right),
        "to_vanilla": [right - 0.97, 0.01],
        "to_reference": None if budget is None else [right - 0.9, 0.01],
        "same_answer": right,
        "kl_mean": 0.125,
        "cache_bytes": 4000 * tokens,
        "prefill_s": 0.05 + tokens / 10_000,
        "own_s": 0.003,
    }


@functools.cache
def _images() -> list[bytes]:
    """Photographs of shapes: about as large as those of real scenes."""
    made = []
    for index in range(3):
        data = io.BytesIO()
        Image.fromarray(make_scene("test", index).image).save(data, "webp", quality=75)
        made.append(data.getvalue())
    return made


def write(folder: Path, report: dict[str, Any]) -> None:
    (folder / "results.json").write_text(json.dumps(report))
