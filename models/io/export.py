"""A model's weights as the published files name and shape them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from models.io.shards import SINGLE
from models.io.table import Table, dotted, key_of, variables_of
from models.io.writing import replacing


def export_weights(model: nnx.Module, table: Table) -> dict[str, np.ndarray]:
    """Weights by the published files' keys: contiguous arrays in the model's dtype, which load back bit by bit."""
    exported = {}
    for path, variable in variables_of(model).items():
        key, transform = key_of(dotted(path), table)
        exported[key] = np.ascontiguousarray(transform.save(np.asarray(variable[...])))
    return exported


def export_safetensors(model: nnx.Module, table: Table, folder: Path | str) -> Path:
    """Write `folder/model.safetensors`, which both this package and transformers load.

    The file appears whole or not at all. The caller writes `config.json` and the processor's files.

    Args:
      model: with weights.
      table: the one that it is loaded with.
      folder: must exist.

    Returns:
      The file.
    """
    path = Path(folder) / SINGLE
    with replacing(path) as part:
        save_file(export_weights(model, table), part, metadata={"format": "pt"})
    return path
