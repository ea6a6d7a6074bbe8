"""Several devices on one machine without any: what a process must know before JAX starts."""

import os
import pathlib
import subprocess
import sys


def host_devices(count: int) -> dict[str, str]:
    """Environment variables for `count` CPU devices that can wait without starving each other.

    All devices run on one pool of threads, as many as there are devices. jaxlib's LAPACK kernels (`eigh` in a carve)
    hand the matrices of a batch to that same pool and wait: with every thread waiting, nobody is left to do them.
    Hence twice as many threads, and one program at a time.
    """
    return {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip(),
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
        "PJRT_NPROC": str(2 * count),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # these programs take longer to compile than to run
    }


def on_devices(count: int, code: str) -> str:
    """What Python code prints in a process of its own with so many CPU devices; it has to end well."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | host_devices(count),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
