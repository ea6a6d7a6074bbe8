"""safetensors written tensor by tensor, in shards, with one tensor in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from models.io.shards import FLOATS, INDEX

SHARD_BYTES = 4_500_000_000
_PATTERN = "model{suffix}.safetensors"
_NAMES = {dtype: name for name, dtype in FLOATS.items()}


def write_safetensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    dtype: np.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model.safetensors`, or numbered shards and their index where one file would be too large.

    Args:
      folder: must exist.
      shapes: of every tensor, in the order of `tensors`.
      tensors: key and array.
      dtype: of all of them.
      shard_bytes: of the tensors in a file, at most, unless it holds one larger tensor.

    Raises:
      ValueError: `tensors` are not what `shapes` announced.
    """
    sizes = {key: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for key, shape in shapes.items()}
    split = split_state_dict_into_shards_factory(
        sizes, get_storage_size=lambda size: size, filename_pattern=_PATTERN, max_shard_size=shard_bytes
    )
    files: dict[str, BinaryIO] = {}
    with ExitStack() as stack:
        for name, keys in split.filename_to_tensors.items():
            files[name] = stack.enter_context((folder / name).open("wb"))
            files[name].write(_header(keys, shapes, sizes, dtype))
        for key, (found, array) in zip(shapes, tensors, strict=True):
            if (found, array.shape, array.dtype) != (key, shapes[key], dtype):
                raise ValueError(f"{found} {array.shape} {array.dtype} came where {key} {shapes[key]} was expected")
            # A tensor over the limit has a file of its own, between two tensors of another.
            files[split.tensor_to_filename[key]].write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _header(
    keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], dtype: np.dtype
) -> bytes:
    """The length and the JSON at the beginning of a file, padded so that the data is aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key in keys:
        span = [offset, offset + sizes[key]]
        entries[key] = {"dtype": _NAMES[dtype], "shape": list(shapes[key]), "data_offsets": span}
        offset += sizes[key]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
