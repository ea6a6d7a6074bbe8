"""A model's weights as the published files name and shape them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from models.io.shards import SINGLE
from models.io.table import Table, dotted, key_of, variables_of


def export_weights(model: nnx.Module, table: Table) -> dict[str, np.ndarray]:
    """A model's weights as the published files name and shape them; loaded again, they are the same bit by bit.

    Args:
      model: any model that the table covers.
      table: the one that it is loaded with.

    Returns:
      Contiguous arrays by key, in the model's dtype.
    """
    exported = {}
    for path, variable in variables_of(model).items():
        key, transform = key_of(dotted(path), table)
        exported[key] = np.ascontiguousarray(transform.save(np.asarray(variable[...])))
    return exported


def export_safetensors(model: nnx.Module, table: Table, folder: Path | str) -> Path:
    """Write `folder/model.safetensors`, which both this package and transformers load.

    The file appears whole or not at all. `config.json` and the processor's files are the caller's.

    Args:
      model: with weights.
      table: the one that it is loaded with.
      folder: must exist.

    Returns:
      The file.
    """
    path = Path(folder) / SINGLE
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        unfinished = Path(scratch) / SINGLE
        save_file(export_weights(model, table), unfinished, metadata={"format": "pt"})
        os.replace(unfinished, path)
    return path
