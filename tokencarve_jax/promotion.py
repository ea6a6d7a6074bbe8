"""JAX's usual promotion inside this package's own functions, whatever strictness the caller has asked of their code."""

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
