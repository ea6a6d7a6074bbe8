"""JAX's usual rules inside this package's own functions, whatever strictness the caller has asked of their code."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

_P = ParamSpec("_P")
_R = TypeVar("_R")


@functools.cache
def usual_promotion(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function` under the promotion of ranks and dtypes that it was written for; a compiled program is the same."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return call


def on_any_mesh(function: Callable[_P, _R], rows: jax.Array) -> Callable[_P, _R]:
    """`function` as it is where the mesh has axes that are explicit in types: it was not written for these.

    What it returns is split as the leading dimensions of `rows` [..., N, D] are, and whole in all others.
    """
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return function
    along = jax.sharding.PartitionSpec(*jax.typeof(rows).sharding.spec[:-2])
    return jax.sharding.auto_axes(function, out_sharding=along)
