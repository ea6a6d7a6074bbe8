"""Checkpoints as tables: which weight of a file goes where in a model, checked in full before anything is built.

A table is a list of rows. A `Row` says where a key goes and how it is reshaped; an `Ignored` says why a key is not
wanted. Every key of a checkpoint must match exactly one row, and every weight of the model must be written exactly
once. Whatever is wrong is collected and raised together, as one `CheckpointError`.

Names in files are dotted, and so are paths in models here: "decoder.layers.0.mlp.up_proj.weight".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from tqdm import tqdm

from models.errors import CheckpointError
from models.io.shards import FLOATS, Files, Header, open_folder, read_tensor


@dataclasses.dataclass(frozen=True)
class Transform:
    """How an array of a file becomes a weight of the model, and back.

    Both functions only use methods that NumPy's and JAX's arrays share, so shapes can be had without data.

    Attributes:
      load: file -> model.
      save: undoes it.
    """

    load: Callable[[Any], Any]
    save: Callable[[Any], Any]


AS_IS = Transform(load=lambda x: x, save=lambda x: x)


@dataclasses.dataclass(frozen=True)
class Row:
    """Keys that are loaded.

    Attributes:
      pattern: regular expression that the whole key must match. Its named groups fill the two templates.
      target: path in the model, such as "layers.{layer}.norm.scale".
      key: the key that an export writes.
      transform: between the two.
    """

    pattern: str
    target: str
    key: str
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Keys that are left out on purpose.

    Attributes:
      pattern: regular expression that the whole key must match.
      reason: ends the sentence "ignored, because ...".
    """

    pattern: str
    reason: str


Table = Sequence[Row | Ignored]
MAPPING = 1  # raised whenever a converted folder of before would be read wrongly
Variables = dict[tuple[Any, ...], Any]  # path in the model -> nnx.Variable, abstract or not


@dataclasses.dataclass(frozen=True)
class Planned:
    """One weight that is about to be read: `key` of a file, `path` in the model."""

    key: str
    path: str
    transform: Transform


class _OneKey:
    """Stands in for `nnx.Rngs`, whose counting takes time quadratic in the number of weights in a trace."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def abstract_model(build: Callable[[Any], nnx.Module]) -> nnx.Module:
    """Shapes and dtypes of `build(rngs)`, without weights: `abstract_model(lambda rngs: Model(config, rngs=rngs))`."""
    return nnx.eval_shape(lambda: build(_OneKey()))


def variables_of(model: nnx.Module) -> Variables:
    """Every variable of a model by its path."""
    return dict(nnx.to_flat_state(nnx.state(model)))


def dotted(path: Sequence[Any]) -> str:
    """("layers", 0, "weight") -> "layers.0.weight"."""
    return ".".join(str(part) for part in path)


def key_of(path: str, table: Table) -> tuple[str, Transform]:
    """The key under which an export writes the weight at `path`, and the transform that goes with it.

    Raises:
      LookupError: the table has no row for it, or several.
    """
    found = []
    for row in table:
        if isinstance(row, Row):
            groups = re.fullmatch(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+)", re.escape(row.target)), path)
            key = row.key.format(**groups.groupdict()) if groups else None
            if key is not None and re.fullmatch(row.pattern, key):
                found.append((key, row.transform))
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows write {path}")
    return found[0]


def _route(key: str, table: Table) -> tuple[Row, str] | Ignored:
    """The row of a key and, unless it is ignored, its path in the model.

    Raises:
      LookupError: no row, or several.
    """
    found = [(row, match) for row in table if (match := re.fullmatch(row.pattern, key))]
    if not found:
        raise LookupError(f"surplus weight {key}: nothing in the model takes it")
    if len(found) > 1:
        raise LookupError(f"{key} matches {len(found)} rows of the table")
    row, match = found[0]
    return row if isinstance(row, Ignored) else (row, row.target.format(**match.groupdict()))


def match(headers: Mapping[str, Header | None], table: Table, variables: Variables) -> tuple[list[Planned], list[str]]:
    """Compare a checkpoint's headers with a model. No data is read.

    Args:
      headers: shape and dtype by key; None where a file that should tell is missing or damaged.
      table: how keys map to the model.
      variables: of the model, abstract or not.

    Returns:
      What to read, in the files' order, and all problems found.
    """
    wanted = {dotted(path): variable for path, variable in variables.items()}
    planned: list[Planned] = []
    problems: list[str] = []
    sources: dict[str, list[str]] = {}
    for key, header in headers.items():
        try:
            route = _route(key, table)
        except LookupError as error:
            problems.append(str(error))
            continue
        if isinstance(route, Ignored):
            continue
        row, path = route
        if path not in wanted:
            problems.append(f"surplus weight {key}: the model that config.json describes has no {path}")
            continue
        sources.setdefault(path, []).append(key)
        planned.append(Planned(key, path, row.transform))
        if header is not None:
            problems += _header_problems(key, header, row.transform, wanted[path])
    problems += [f"{' and '.join(keys)} are the same weight" for keys in sources.values() if len(keys) > 1]
    for path in wanted:
        if path not in sources:
            try:
                problems.append(f"missing weight {key_of(path, table)[0]}")
            except LookupError as error:
                problems.append(str(error))
    return planned, problems


def _header_problems(key: str, header: Header, transform: Transform, variable: Any) -> Iterator[str]:
    if header.dtype not in FLOATS:
        yield f"{key} has dtype {header.dtype}; expected one of {', '.join(FLOATS)}"
    expected = jax.eval_shape(transform.save, jax.ShapeDtypeStruct(variable.shape, variable.dtype)).shape
    if header.shape != expected:
        yield f"{key} has shape {list(header.shape)}; config.json asks for {list(expected)}"


def read_weights(
    files: Files, table: Table, variables: Variables, *, dtype: np.dtype, quiet: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Read a checkpoint one tensor at a time.

    All that headers can tell is checked before the first tensor is read. What is wrong with the numbers shows after
    the last one, so do not keep what came before an error.

    Args:
      files: from `open_folder`.
      table: how keys map to the model.
      variables: of the model, abstract or not.
      dtype: of what comes out, a float.
      quiet: no progress bar (there is none either where standard error is not a terminal).

    Yields:
      Path in the model and its array, in the files' order.

    Raises:
      CheckpointError: with everything that is wrong.
    """
    if files.problems and not files.headers:
        raise CheckpointError(files.folder, files.problems)
    planned, problems = match(files.headers, table, variables)
    if problems := [*files.problems, *problems]:
        raise CheckpointError(files.folder, problems)
    for item in tqdm(planned, desc="Loading weights", unit=" tensors", disable=True if quiet else None):
        header = files.headers[item.key]
        assert header is not None  # a key without a header comes with a problem
        try:
            array = read_tensor(item.key, header, np.dtype(dtype))
        except (SafetensorError, OSError, ValueError) as error:
            problems.append(f"{item.key} {error}")
            continue
        if not problems:
            yield item.path, item.transform.load(array)
    if problems:
        raise CheckpointError(files.folder, problems)


def load_weights(
    abstract: nnx.Module,
    folder: Path | str,
    table: Table,
    *,
    dtype: Any,
    sharding: Callable[[str, tuple[int, ...]], jax.sharding.Sharding] | None = None,
    quiet: bool = False,
) -> nnx.Module:
    """A model with the weights of a folder. Nothing is allocated for the model but what is read.

    Args:
      abstract: from `abstract_model`; not changed.
      folder: holds `model.safetensors`, or `model.safetensors.index.json` and its shards.
      table: how keys map to the model.
      dtype: of the loaded weights; files may hold another float.
      sharding: called with path and shape of each weight; the default device where None.
      quiet: no progress bar.

    Returns:
      The filled model.

    Raises:
      CheckpointError: with everything that is wrong.
    """
    graph, state = nnx.split(abstract)
    variables = dict(nnx.to_flat_state(state))
    paths = {dotted(path): path for path in variables}
    filled = {}
    for path, array in read_weights(open_folder(Path(folder)), table, variables, dtype=np.dtype(dtype), quiet=quiet):
        place = sharding(path, array.shape) if sharding is not None else None
        filled[paths[path]] = variables[paths[path]].replace(jax.device_put(array, place))
    return nnx.merge(graph, nnx.from_flat_state(filled))
