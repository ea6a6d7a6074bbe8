"""Converted folders: a checkpoint's weights as one Orbax PyTree, beside its config and its processor's files.

    config.json, tokenizer.json, ...    as they were published
    weights/                            for orbax-checkpoint: nested dicts, keys as in the model's paths
    conversion.json                     where it came from; written last

Weights are written as they are read, one at a time, and read back straight to where they are to live.
"""

from __future__ import annotations

import gc
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from models.errors import CheckpointError, ConfigError
from models.io.shards import FLOATS
from models.io.table import MAPPING, Variables, dotted, variables_of, with_weights
from models.io.untrusted import MOST_BYTES, check_file, read_json, reason

Result = TypeVar("Result")
WEIGHTS, MANIFEST = "weights", "conversion.json"
_CHUNK_BYTES = 1 << 26  # arrays are stored in pieces, so that a mesh reads only its own and little is copied at a time
_ABOUT_BYTES = 1 << 14  # a description of an array takes 200


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


def save(folder: Path, paths: Iterable[str], weights: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write `folder/weights`.

    Args:
      folder: must exist.
      paths: of all weights.
      weights: path and array, in any order; each is released before the next is asked for. An error that it raises
        is passed on, and leaves the folder incomplete.
    """
    registry = ocp.type_handlers.create_type_handler_registry((_Coming, _Streaming(weights)))
    # One folder per array and no compression: float weights do not shrink by enough to pay for the time.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        tree = unflatten_dict({path: _Coming() for path in paths}, sep=".")
        checkpointer.save((folder / WEIGHTS).absolute(), args=ocp.args.PyTreeSave(tree))


def is_converted(folder: Path) -> bool:
    """Whether a folder was converted to the end."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check `conversion.json`.

    Raises:
      CheckpointError: it cannot be read, or another mapping wrote the folder.
    """
    try:
        manifest = read_json(folder / MANIFEST, ConfigError)
    except (OSError, ConfigError) as error:
        raise CheckpointError(folder, [str(error)]) from error
    mapping, dtype = manifest.get("mapping"), manifest.get("dtype")
    if mapping != MAPPING:
        raise CheckpointError(
            folder, [f"was converted by mapping {mapping}; this version reads {MAPPING}. Convert it again"]
        )
    known = [float_.name for float_ in FLOATS.values()]
    if dtype not in known:
        raise CheckpointError(folder, [f"{MANIFEST} has dtype {dtype!r}; expected {' or '.join(known)}"])
    return manifest


def _read(folder: Path, body: Callable[[ocp.Checkpointer, Path], Result]) -> Result:
    """The result of `body(checkpointer, folder of the weights)`; whatever Orbax raises about them becomes one line.

    Raises:
      CheckpointError: the files are damaged.
    """
    # Each process reads for itself: Orbax would have all of them arrive within 30 seconds on a CPU.
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    handler, problem, before = ocp.PyTreeCheckpointHandler(use_ocdbt=False), "", sys.unraisablehook
    # Reads that a failure cancels complain one by one, a page each, when they are collected.
    sys.unraisablehook = lambda dropped: before(dropped) if dropped.exc_type is KeyboardInterrupt else None
    try:
        # Closed at the end: what is left open complains when the process ends.
        with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
            return body(checkpointer, (folder / WEIGHTS).absolute())
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # of Orbax, with TensorStore's own as its cause
        problem = f"{WEIGHTS} is damaged or incomplete ({reason(error.__cause__ or error)})"
    finally:
        if problem:
            gc.collect()
        sys.unraisablehook = before
    raise CheckpointError(folder, [problem])


def _unreadable(weights: Path) -> Iterator[str]:
    """What is wrong with descriptions: a pipe would block TensorStore, and its parser crashes on very deep ones."""
    for path in sorted([*weights.glob("_*"), *weights.glob("*/.zarray")]):
        try:
            check_file(path, ConfigError, most=_ABOUT_BYTES if path.name == ".zarray" else MOST_BYTES)
        except ConfigError as error:
            yield str(error).removeprefix(f"{weights.parent}/")


def _grid(length: int, piece: int) -> range:
    return range(-(-length // piece))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class Reader:
    """Reads the weights of a converted folder, after comparing all names and shapes with a model's.

    Args:
      folder: a converted folder.
      variables: of the model, abstract or not.

    Raises:
      CheckpointError: with everything that does not fit.
    """

    def __init__(self, folder: Path, variables: Variables):
        itemsize = np.dtype(read_manifest(folder)["dtype"]).itemsize
        self._folder = folder
        self.shapes = {dotted(path): tuple(variable.shape) for path, variable in variables.items()}
        if problems := list(_unreadable(folder / WEIGHTS)):
            raise CheckpointError(folder, problems)
        tree = _read(folder, lambda checkpointer, weights: checkpointer.metadata(weights).item_metadata.tree)
        found = {path: tuple(about.shape) for path, about in flatten_dict(tree, sep=".").items()}
        problems = [f"missing weight {path}" for path in self.shapes if path not in found]
        problems += [f"surplus weight {path}" for path in found if path not in self.shapes]
        for path, shape in self.shapes.items():
            if found.get(path, shape) != shape:
                problems.append(f"{path} has shape {list(found[path])}; config.json asks for {list(shape)}")
        if problems := problems or list(self._damaged(itemsize)):
            raise CheckpointError(folder, problems)

    def _damaged(self, itemsize: int) -> Iterator[str]:
        """Chunks that are missing or of another size: Orbax would tell of all the reads that it then cancels."""
        for name, shape in self.shapes.items():
            try:
                folder = self._folder / WEIGHTS / name
                pieces = read_json(folder / ".zarray", ConfigError).get("chunks")
                if not isinstance(pieces, list) or len(pieces) != len(shape) or not all(map(_is_size, pieces)):
                    raise ConfigError(f"{folder}/.zarray has chunks {str(pieces)[:80]}")
                size, grid = itemsize * math.prod(pieces), map(_grid, shape, pieces)
                for place in itertools.product(*grid):
                    chunk = folder / ".".join(map(str, place))
                    check_file(chunk, ConfigError, most=size)
                    if (there := chunk.stat().st_size) < size:
                        raise ConfigError(f"{chunk} has {there} bytes; expected {size}")
            except ConfigError as error:
                yield str(error).removeprefix(f"{self._folder}/")

    def read(self, how: dict[str, ocp.RestoreArgs]) -> dict[str, Any]:
        """The arrays at some paths, each restored as its arguments say.

        Raises:
          CheckpointError: damaged files, or numbers that are not finite.
        """
        wanted = {path: jax.ShapeDtypeStruct(self.shapes[path], np.float32) for path in how}
        args = ocp.args.PyTreeRestore(
            item=unflatten_dict(wanted, sep="."), restore_args=unflatten_dict(how, sep="."), partial_restore=True
        )
        tree = _read(self._folder, lambda checkpointer, weights: checkpointer.restore(weights, args=args))
        arrays = flatten_dict(tree, sep=".")
        problems = [f"{path} holds NaN or infinity" for path, array in arrays.items() if not _is_finite(array)]
        if problems:
            raise CheckpointError(self._folder, problems)
        return arrays


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def _is_finite(array: Any) -> bool:
    return bool(_all_finite(array) if isinstance(array, jax.Array) else np.isfinite(array).all())


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

    Raises:
      CheckpointError: with everything that is wrong.
    """
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
    return with_weights(abstract, reader.read(how))
