"""Converted folders: a checkpoint's weights as one Orbax PyTree, beside its config and its processor's files.

    config.json, tokenizer.json, ...    as they were published
    weights/                            for orbax-checkpoint: nested dicts, keys as in the model's paths
    conversion.json                     where it came from; written last

Weights are written as they are read, one at a time, and read back straight to where they are to live.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from models.errors import CheckpointError
from models.io.table import MAPPING, Variables, dotted, variables_of

WEIGHTS, MANIFEST = "weights", "conversion.json"
_CHUNK_BYTES = 1 << 26  # arrays are stored in pieces, so that a mesh reads only its own and little is copied at a time
_ARRAY_ERRORS = (OSError, ValueError, KeyError, TypeError)  # what Orbax raises for files that are not right


class _Coming:
    """Stands in the tree for an array that is read when its turn comes."""


class _Streaming(ocp.type_handlers.NumpyHandler):
    """Writes arrays in the order in which they come, each before the next is read."""

    def __init__(self, weights: Iterable[tuple[str, np.ndarray]]):
        super().__init__(deepcopy_host_arrays=False)
        self._weights = weights

    async def serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Any = None) -> list[Any]:
        """See `ocp.type_handlers.TypeHandler`."""
        where = {info.name: info for info in infos}
        how = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
        for path, array in self._weights:
            for written in await super().serialize([array], [where[path]], [how]):
                written.result()
        return []


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split(".")
        inner = tree
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[name] = leaf
    return tree


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The other way round."""
    for name, inner in tree.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def save(folder: Path, paths: Iterable[str], weights: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write `folder/weights`.

    Args:
      folder: must exist.
      paths: of all weights.
      weights: path and array, in any order; each is let go before the next is asked for.

    Raises:
      Whatever `weights` raises. What was written so far is then worth nothing.
    """
    registry = ocp.type_handlers.create_type_handler_registry((_Coming, _Streaming(weights)))
    # One folder per array and no compression: float weights do not shrink by enough to pay for the time.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        tree = _nested({path: _Coming() for path in paths})
        checkpointer.save((folder / WEIGHTS).absolute(), args=ocp.args.PyTreeSave(tree))


def is_converted(folder: Path) -> bool:
    """Whether a folder is one that was converted to the end."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `conversion.json` says.

    Raises:
      CheckpointError: it cannot be read, or the folder was written by another mapping.
    """
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_text()))
        mapping = manifest["mapping"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(folder, [f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"]) from error
    if mapping != MAPPING:
        raise CheckpointError(
            folder, [f"was converted by mapping {mapping}; this version reads {MAPPING}. Convert it again"]
        )
    return manifest


def _checkpointer() -> ocp.Checkpointer:
    """For reading. Close it: what is left open complains when the process ends."""
    # Each process reads for itself: Orbax would have all of them arrive within 30 seconds on a CPU.
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False), multiprocessing_options=options)


class Reader:
    """Reads the weights of a converted folder, after comparing all names and shapes with a model's.

    Args:
      folder: a converted folder.
      variables: of the model, abstract or not.

    Raises:
      CheckpointError: with everything that does not fit.
    """

    def __init__(self, folder: Path, variables: Variables):
        read_manifest(folder)
        self._folder = folder
        try:
            with _checkpointer() as checkpointer:
                found = dict(_flat(checkpointer.metadata((folder / WEIGHTS).absolute()).item_metadata.tree))
        except (*_ARRAY_ERRORS, AttributeError) as error:
            raise CheckpointError(folder, [f"{WEIGHTS} is damaged or incomplete ({error})"]) from error
        wanted = {dotted(path): tuple(variable.shape) for path, variable in variables.items()}
        problems = [f"missing weight {path}" for path in wanted if path not in found]
        problems += [f"surplus weight {path}" for path in found if path not in wanted]
        for path in wanted.keys() & found.keys():
            if tuple(found[path].shape) != wanted[path]:
                shape, asked = list(found[path].shape), list(wanted[path])
                problems.append(f"{path} has shape {shape}; config.json asks for {asked}")
        if problems:
            raise CheckpointError(folder, problems)
        self.shapes = wanted

    def read(self, how: dict[str, ocp.RestoreArgs]) -> dict[str, Any]:
        """The arrays at some paths, each restored as its arguments say."""
        args = ocp.args.PyTreeRestore(
            item=_nested({path: jax.ShapeDtypeStruct(self.shapes[path], np.float32) for path in how}),
            restore_args=_nested(how),
            partial_restore=True,
        )
        try:
            with _checkpointer() as checkpointer:
                return dict(_flat(checkpointer.restore((self._folder / WEIGHTS).absolute(), args=args)))
        except _ARRAY_ERRORS as error:
            raise CheckpointError(self._folder, [f"{WEIGHTS} is damaged or incomplete ({error})"]) from error


def restore(
    abstract: nnx.Module,
    folder: Path,
    *,
    dtype: Any,
    sharding: Callable[[str, tuple[int, ...]], jax.sharding.Sharding] | None = None,
) -> nnx.Module:
    """A model with the weights of a converted folder, each read straight to its place.

    Args:
      abstract: from `abstract_model`; not changed.
      folder: a converted folder.
      dtype: of the loaded weights; the folder may hold another float.
      sharding: called with path and shape of each weight; the default device where None.

    Returns:
      The filled model.

    Raises:
      CheckpointError: with everything that is wrong.
    """
    graph, state = nnx.split(abstract)
    variables = dict(nnx.to_flat_state(state))
    reader = Reader(folder, variables_of(abstract))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    how = {
        path: ocp.ArrayRestoreArgs(
            restore_type=jax.Array,
            dtype=np.dtype(dtype),
            sharding=here if sharding is None else sharding(path, shape),
            global_shape=shape,
        )
        for path, shape in reader.shapes.items()
    }
    arrays = reader.read(how)
    filled = {path: variable.replace(arrays[dotted(path)]) for path, variable in variables.items()}
    return nnx.merge(graph, nnx.from_flat_state(filled))
