"""The placement of weights and activations on a mesh: data parallel over one axis, tensor parallel over another.

Weights are split as in Megatron-LM (arXiv 1909.08053): the first matrix of each pair by its outputs, the second by its
inputs, so that a block needs one sum over the "model" axis after attention and one after the MLP. XLA derives the rest
from the constraints at block boundaries. A mesh may lack either axis, and a dimension that does not divide stays whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, MODEL = "data", "model"

Tree = TypeVar("Tree")

# First match wins; what no rule names is replicated (norms, position embeddings, biases after a sum).
_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r".*\.(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1|linear_1|lm_head)\.weight", (MODEL, None)),
    (r".*\.(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1|linear_1)\.bias", (MODEL,)),
    (r".*\.qkv\.weight", (None, MODEL, None)),
    (r".*\.qkv\.bias", (None, MODEL)),
    (r".*\.(o_proj|out_proj|down_proj|fc2|linear_2)\.weight", (None, MODEL)),
    (r".*\.embed_tokens\.embedding", (None, MODEL)),
)


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same devices and axes, with sharding left to the compiler between our constraints.

    Raises:
      ValueError: an axis that is neither "data" nor "model".
    """
    unknown = set(mesh.axis_names) - {DATA, MODEL}
    if unknown:
        raise ValueError(f"mesh has axes {mesh.axis_names}; expected {DATA!r} (batch), {MODEL!r} (weights), or both")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _fitting(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """A sharding by the axes that the mesh has and that divide their dimension."""
    fits = (
        axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    )
    return NamedSharding(mesh, PartitionSpec(*fits))


def weight_sharding(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """The sharding of each weight, as a function of its dotted path in the model and its shape."""

    def of(path: str, shape: tuple[int, ...]) -> NamedSharding:
        axes = next((axes for pattern, axes in _RULES if re.fullmatch(pattern, path)), (None,) * len(shape))
        return _fitting(mesh, axes, shape)

    return of


def batch_sharding(mesh: Mesh) -> Callable[[tuple[int, ...]], NamedSharding]:
    """The sharding of arrays with one row per prompt, split over "data", as a function of their shape."""
    return lambda shape: _fitting(mesh, (DATA, *(None,) * (len(shape) - 1))[: len(shape)], shape)


def place_batch(batch: Tree, mesh: Mesh | None) -> Tree:
    """Put host arrays on the mesh, their leading dimension split over "data". Without a mesh, nothing happens."""
    if mesh is None:
        return batch
    place = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.device_put(array, place(np.shape(array))), batch)


def by_batch(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Constrain x at a block boundary: rows over "data", everything else whole. Without a mesh, x itself."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, _fitting(mesh, (DATA,) + (None,) * (x.ndim - 1), x.shape))
