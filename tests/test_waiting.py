"""No program waits for itself: many scores at once, on pools of 1, 2 and 4 threads, in processes of their own.

jaxlib splits a batched LAPACK call over the thread pool in which it waits: two of those and two threads never end.
"""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import concurrent.futures
import jax
from tokencarve_jax import carve, information_contribution

def ratios(tokens, attention):
    return [carve(tokens * (1 + i), attention, keep=keep).tokens for i, keep in enumerate((64, 128))]

def contributions(method):
    return lambda tokens, attention: [information_contribution(tokens * (1 + i), method=method) for i in range(3)]

attention = jax.random.uniform(jax.random.key(1), (6, 576))
tokens = jax.random.normal(jax.random.key(0), (6, 576, 160))
for function in (jax.vmap(ratios), contributions("svd")):
    compiled = jax.jit(function)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:  # programs run side by side, too
        for out in threads.map(lambda _: compiled(tokens, attention), range(6)):
            jax.block_until_ready(out)
"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_scores_in_one_program_do_not_wait_for_each_other(threads):
    environment = {**os.environ, "PJRT_NPROC": str(threads), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, timeout=120)
