"""Matrix decompositions that never wait for each other: on a CPU each matrix is a call of LAPACK of its own.

jaxlib splits a batched LAPACK call into tasks for XLA's thread pool, and waits for them in a thread of that pool. Two
such calls at a time on two cores hold both threads, and no thread is left for the tasks: the program never ends. Two
scores in one program are enough. A call with one matrix runs where it stands and waits for nobody, and calls that do
not depend on each other still run side by side. GPUs and TPUs get the batch as it is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

_SIDE_BY_SIDE = 8  # matrices per step of the loop over a batch, all of which may run at once


def _matrix_by_matrix(rule: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a decomposition of arrays [..., a, b] with the same leading dimensions see one matrix at a time on a CPU.

    Args:
        rule: the axes of arguments and results in the notation of `custom_partitioning`. A device computes its own part
            of the leading dimensions.
    """

    def decorate(decompose: Callable[..., Any]) -> Callable[..., Any]:
        @custom_partitioning
        def on_cpu(*arrays: jax.Array) -> Any:
            batch = arrays[0].shape[:-2]
            stacks = tuple(array.reshape(-1, *array.shape[-2:]) for array in arrays)
            unroll = max(1, min(_SIDE_BY_SIDE, len(stacks[0])))
            _, out = lax.scan(lambda none, matrices: (none, decompose(*matrices)), None, stacks, unroll=unroll)
            return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), out)

        def partition(mesh: Any, arguments: Any, results: Any) -> tuple[Any, ...]:
            spec = arguments[0].sharding.spec[: len(arguments[0].shape) - 2]

            def whole_matrices(array: Any) -> NamedSharding:
                return NamedSharding(mesh, PartitionSpec(*spec))

            return mesh, on_cpu.fun, jax.tree.map(whole_matrices, results), tuple(map(whole_matrices, arguments))

        on_cpu.def_partition(partition=partition, sharding_rule=rule)

        # `vmap` would make a batched call of the one matrix again. An axis that it adds is one more leading dimension.
        @custom_vmap
        def call(*arrays: jax.Array) -> Any:
            return lax.platform_dependent(*arrays, cpu=on_cpu, default=decompose)

        @call.def_vmap
        def _(axis_size: int, mapped: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
            batched = [
                array if is_mapped else jnp.broadcast_to(array, (axis_size, *array.shape))
                for array, is_mapped in zip(arrays, mapped, strict=True)
            ]
            out = call(*batched)
            return out, jax.tree.map(lambda _: True, out)

        # A function with a rule for `vmap` has none for reverse-mode gradients, hence the plain one's.
        differentiable = jax.custom_jvp(call)
        differentiable.defjvp(lambda primals, tangents: jax.jvp(decompose, primals, tangents))
        return functools.wraps(decompose)(differentiable)

    return decorate


@_matrix_by_matrix("... n k -> ... n k")
def orthonormal_columns(matrix: jax.Array) -> jax.Array:
    """Q [..., N, K] of the reduced QR decomposition of [..., N, K], by Householder's reflections."""
    return jnp.linalg.qr(matrix)[0]


@_matrix_by_matrix("... n k -> ... i k")
def triangle(matrix: jax.Array) -> jax.Array:
    """R [..., K, K] of the reduced QR decomposition of [..., N, K], N >= K."""
    return jnp.linalg.qr(matrix, mode="r")


@_matrix_by_matrix("... n k -> ... i j")
def right_singular_vectors(matrix: jax.Array) -> jax.Array:
    """V [..., D, D] of a square matrix U S V^T, one vector a column."""
    return jnp.swapaxes(jnp.linalg.svd(matrix, full_matrices=False)[2], -1, -2)


@_matrix_by_matrix("... n k -> ... i j, ... l")
def eigh(lower_triangle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors [..., N, N] and ascending eigenvalues [..., N] of the symmetric matrix with this lower triangle."""
    vectors, values = lax.linalg.eigh(lower_triangle, lower=True, symmetrize_input=False)
    return vectors, values


@_matrix_by_matrix("... n k -> ... i j, ... l")
def eigh_by_jacobi(lower_triangle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`eigh` by Jacobi's method on GPUs and TPUs; on a CPU, which has none, as `eigh`."""
    default = functools.partial(lax.linalg.eigh, lower=True, symmetrize_input=False)
    jacobi = functools.partial(default, implementation=lax.linalg.EighImplementation.JACOBI)
    return tuple(lax.platform_dependent(lower_triangle, cpu=default, default=jacobi))


@_matrix_by_matrix("... n k -> ... n k")
def cholesky(lower_triangle: jax.Array) -> jax.Array:
    """The lower triangle L [..., N, N] of L L^T, for a positive definite matrix whose lower triangle is read."""
    return lax.linalg.cholesky(lower_triangle, symmetrize_input=False)


@_matrix_by_matrix("... i j, ... n k -> ... n k")
def solve_transposed(triangle: jax.Array, columns: jax.Array) -> jax.Array:
    """X = A L^-T of the lower triangle L [..., K, K] and A [..., N, K], that is X L^T = A."""
    return lax.linalg.triangular_solve(triangle, columns, lower=True, transpose_a=True)
