"""Two programs at a time on a CPU, where a small model keeps one core busy.

XLA runs programs and the LAPACK calls in them on one pool of threads, as many as there are cores. Two programs on two
cores then wait for ever for a thread that does their decompositions, so the pool has to be larger: JAX reads its size,
`PJRT_NPROC`, when it is first used.
"""

from __future__ import annotations

import os

import jax

from experiments.core.results import cores


def make_room() -> None:
    """Have a pool that is large enough, unless the user has chosen one; before anything runs on JAX."""
    os.environ.setdefault("PJRT_NPROC", str(_enough()))


def at_a_time() -> int:
    """How many programs may run at a time."""
    pool = os.environ.get("PJRT_NPROC", "")
    return 2 if jax.default_backend() == "cpu" and pool.isdecimal() and int(pool) >= _enough() else 1


def _enough() -> int:
    return max(4, 2 * cores())
