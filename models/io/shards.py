"""The safetensors files of a checkpoint folder: their headers, their problems, and their tensors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from models.errors import ConfigError
from models.io.untrusted import file_problem, read_json, reason

FLOATS: Mapping[str, np.dtype] = MappingProxyType(
    {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
)
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_CHUNK = 1 << 22  # elements cast and checked at a time, so that only the result is ever held whole


@dataclasses.dataclass(frozen=True)
class Header:
    """One tensor of a file: its shape, and its dtype in safetensors' words ("BF16")."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Files:
    """A checkpoint folder.

    Attributes:
      folder: the folder.
      headers: by key; None where the index names a key whose file is missing or damaged.
      problems: everything wrong with the files themselves.
    """

    folder: Path
    headers: Mapping[str, Header | None]
    problems: tuple[str, ...]


def open_folder(folder: Path) -> Files:
    """Read the headers of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Damaged files are problems in the result; nothing is raised.
    """
    if os.path.lexists(folder / SINGLE):
        headers, problems = _headers(folder / SINGLE)
        return Files(folder, headers, problems)
    if os.path.lexists(folder / INDEX):
        problem = file_problem(folder / INDEX)
        return Files(folder, {}, (f"{INDEX} {problem}",)) if problem else _sharded(folder)
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
    if pickles:
        problem = (
            f"holds its weights only as pickles ({', '.join(pickles[:3])}), which can run any code when opened; "
            "save them as safetensors first, where you trust them, with `save_pretrained` of transformers"
        )
        return Files(folder, {}, (problem,))
    return Files(folder, {}, (f"has neither {SINGLE} nor {INDEX}",))


def _headers(path: Path) -> tuple[dict[str, Header], tuple[str, ...]]:
    """Headers and problems of one file."""
    if problem := file_problem(path):
        return {}, (f"{path.name} {problem}" if os.path.lexists(path) else f"{path.name} is missing",)
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            return {key: Header(path, tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()}, ()
    except (SafetensorError, OSError) as error:
        with path.open("rb") as raw:
            if raw.read(20) == b"version https://git-":
                return {}, (f"{path.name} is a Git LFS pointer; fetch the file itself with `git lfs pull`",)
        return {}, (f"{path.name} is damaged or incomplete ({error})",)


def _sharded(folder: Path) -> Files:
    try:
        weight_map = read_json(folder / INDEX, ConfigError)["weight_map"]
        assigned = {str(key): Path(name) for key, name in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Files(folder, {}, (f"{INDEX} is not a readable index ({reason(error)})",))
    headers: dict[str, Header | None] = dict.fromkeys(assigned)
    problems: list[str] = []
    for shard in sorted(set(assigned.values())):
        if len(shard.parts) != 1:
            problems.append(f"{INDEX} names {shard}, which is not a file of this folder")
            continue
        found, broken = _headers(folder / shard)
        problems += broken
        if broken:
            continue
        listed = {key for key, name in assigned.items() if name == shard}
        problems += [f"{shard} lacks {key}, which {INDEX} places there" for key in sorted(listed - set(found))]
        problems += [f"{shard} holds {key}, which {INDEX} does not place there" for key in sorted(set(found) - listed)]
        headers |= {key: header for key, header in found.items() if key in listed}
    return Files(folder, headers, tuple(problems))


def read_tensor(key: str, header: Header, dtype: np.dtype) -> np.ndarray:
    """Read one tensor, cast to another float: a new C-contiguous array.

    Raises:
      ValueError: a number is not finite, in the file or in `dtype`.
      OSError: the file cannot be read.
    """
    # Opened anew for every tensor: a mapped file counts as resident memory for as long as it stays open.
    with safe_open(header.file, framework="np") as file:
        array = file.get_tensor(key)
    out = np.empty(array.shape, dtype)
    source, target = array.reshape(-1), out.reshape(-1)
    for start in range(0, source.size, _CHUNK):
        piece = slice(start, start + _CHUNK)
        with np.errstate(over="ignore"):
            target[piece] = source[piece]
        if not np.isfinite(target[piece]).all():
            overflow = np.isfinite(source[piece]).all()
            raise ValueError(f"is too large for {dtype.name}" if overflow else "holds NaN or infinity")
    return out
