"""Linear layers as checkpoints hold them, and activations by their names in transformers' configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx

_by_fan_in = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Sigmoid-weighted x, x * sigmoid(1.702 x): the activation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def _exact_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)  # jax.nn.gelu is the tanh form by default


def _tanh_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


# Names as in transformers' configs.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "gelu": _exact_gelu,
        "gelu_new": _tanh_gelu,
        "gelu_pytorch_tanh": _tanh_gelu,
        "quick_gelu": quick_gelu,
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
        "swish": jax.nn.silu,
    }
)


class Linear(nnx.Module):
    """y = W x + b, with W as checkpoints hold it: [out, in].

    In decoding every row of W is read once, for one vector: stored by rows, each core reads one stretch of memory.

    Args:
      in_features: width of x.
      out_features: width of y.
      use_bias: whether there is a b.
      dtype: of W and b.
      rngs: for the random initialisation.
    """

    def __init__(self, in_features: int, out_features: int, *, use_bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.weight = nnx.Param(_by_fan_in(rngs.params(), (out_features, in_features), dtype))
        self.bias = nnx.Param(jnp.zeros(out_features, dtype)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        y = jnp.einsum("...i,oi->...o", x, self.weight[...])
        return y if self.bias is None else y + jnp.expand_dims(self.bias[...], range(y.ndim - 1))
