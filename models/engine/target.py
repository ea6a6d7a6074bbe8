"""What programs are compiled for: static choices of the caller, never made while tracing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Target:
    """Hashable, a static argument of the compiled programs.

    Attributes:
      kernel: of attention over whole sequences, see `models.nn.attention.attend`: "blocks" or "cudnn".
      merge_heads: the cache has batch and key-value heads as one axis; not on a mesh, which splits both.
    """

    kernel: str = "blocks"
    merge_heads: bool = True


CPU = TPU = Target()
CUDA = Target(kernel="cudnn")  # NVIDIA's Ampere and later


def target_of(device: Any) -> Target:
    """The target for a device of this machine, such as `jax.devices()[0]`."""
    generation, *_ = str(getattr(device, "compute_capability", "")).split(".")  # "9.0", but AMD's "gfx942"
    if not generation.isdigit() or int(generation) < 8:
        return CPU
    heads = jax.ShapeDtypeStruct((1, 8, 1, 64), jnp.bfloat16)

    def fused(x: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(x, x, x, implementation="cudnn")

    try:
        jax.eval_shape(fused, heads)
    except (RuntimeError, ValueError, NotImplementedError):  # JAX says so: no cuDNN, or too old
        return CPU
    return CUDA


def holding(weight: Any) -> Target:
    """The target of the device that holds a weight; `CPU`, which runs anywhere, for one without values."""
    if isinstance(weight, jax.core.Tracer) or not isinstance(weight, jax.Array):
        return CPU
    return target_of(min(weight.devices(), key=lambda device: device.id))
