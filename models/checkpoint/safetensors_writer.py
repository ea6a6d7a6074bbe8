"""safetensors written tensor by tensor, into as many shards as it takes, without holding more than one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from models.checkpoint.shards import FLOATS, INDEX, SINGLE

SHARD_BYTES = 4_500_000_000
_NAMES = {dtype: name for name, dtype in FLOATS.items()}


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Keys in order, a new shard wherever the next tensor would go over the limit."""
    shards: list[list[str]] = [[]]
    used = 0
    for key, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(key)
        used += size
    return shards


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
      shapes: of every tensor, in the order in which `tensors` brings them.
      tensors: key and array.
      dtype: of all of them.
      shard_bytes: a file holds at most so many bytes of tensors, or one tensor.

    Raises:
      ValueError: a tensor that was not announced so.
      OSError: the disk is full, or the folder cannot be written to.
    """
    sizes = {key: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for key, shape in shapes.items()}
    shards = _shards(sizes, shard_bytes)
    one = len(shards) == 1
    names = [SINGLE if one else f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    coming = iter(tensors)
    for name, keys in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(keys, shapes, sizes, dtype))
            for key in keys:
                found, array = next(coming)
                if (found, array.shape, array.dtype) != (key, shapes[key], dtype):
                    raise ValueError(f"{found} {array.shape} {array.dtype} came where {key} {shapes[key]} was expected")
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if not one:
        where = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _header(
    keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], dtype: np.dtype
) -> bytes:
    """The eight bytes and the JSON that a file begins with, padded so that the data is aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key in keys:
        span = [offset, offset + sizes[key]]
        entries[key] = {"dtype": _NAMES[dtype], "shape": list(shapes[key]), "data_offsets": span}
        offset += sizes[key]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
