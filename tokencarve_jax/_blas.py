"""One thread for the LAPACK that a CPU's eigenvalues and singular values come from.

On a CPU, XLA calls the LAPACK inside SciPy. SciPy's wheels bring it as a private copy of OpenBLAS, with a thread for
each core. Threads of a call wait for each other in loops, and go on looping for 0.1 s behind it. On an idle machine
they gain nothing at the sizes of visual tokens; beside other work, or in a container with a share of the cores, they
starve each other and whatever XLA runs next (`python -m experiments.studies.carve_tail` shows it).

What was weighed: a limit that ends with the call cannot be had, as a compiled program runs where no Python does, and
OpenBLAS, in the build that SciPy brings, counts its threads for the whole process. (`openblas_set_num_threads_local` is
absent from it, and sets the same count where it exists.) A second copy of the library for us alone would need a hand
inside JAX and SciPy, where a mistake is a crash and not a delay. An environment variable is read too early for a
library, and by NumPy's copy as well. Hence the count itself is set, of SciPy's copy and no other, once, when the first
score is traced: that is before SciPy is loaded in most programs, as JAX loads it when it compiles for a CPU.

The price: `scipy.linalg` and `jnp.linalg` on a CPU have one thread from then on, in this process, also where what was
traced goes to a GPU. NumPy, PyTorch and XLA's own products keep all of theirs. A number of threads that was chosen
stays, before and after: by OPENBLAS_NUM_THREADS or OMP_NUM_THREADS, or with threadpoolctl.
"""

import ctypes
import functools
import importlib.util
import os
from pathlib import Path

# What OpenBLAS reads when it is loaded.
_VARIABLES = ("OPENBLAS_NUM_THREADS", "OPENBLAS_DEFAULT_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")


class _OpenBlas:
    """The copy of OpenBLAS in SciPy's wheel."""

    def __init__(self, library: ctypes.CDLL):
        prefix = "scipy_" if hasattr(library, "scipy_openblas_get_num_threads") else ""  # since SciPy 1.14
        self.get_threads = getattr(library, f"{prefix}openblas_get_num_threads")
        self.set_threads = getattr(library, f"{prefix}openblas_set_num_threads")
        config = getattr(library, f"{prefix}openblas_get_config")
        config.restype = ctypes.c_char_p
        most = [int(word[12:]) for word in config().split() if word.startswith(b"MAX_THREADS=")]
        self.installed = min([getattr(library, f"{prefix}openblas_get_num_procs")(), *most])
        """The number of threads if nobody has chosen one."""


def one_thread() -> None:
    """Give LAPACK one thread, the first time, unless someone has chosen a number. Does nothing without OpenBLAS."""
    library = open_blas()
    if library is None or _set or any(os.environ.get(name, "0") not in ("", "0") for name in _VARIABLES):
        return
    if library.get_threads() == library.installed:
        library.set_threads(1)
        _set.append(True)


_set: list[bool] = []


@functools.cache
def open_blas() -> _OpenBlas | None:
    """SciPy's own copy, or None where it shares one with others (conda, Linux distributions) or has another BLAS."""
    try:
        scipy = importlib.util.find_spec("scipy")  # not imported: a program for a GPU does without it
        package = Path(scipy.origin).parent if scipy and scipy.origin else Path()
        # Linux and Windows; macOS.
        found = [*package.parent.glob("scipy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")]
        return _OpenBlas(ctypes.CDLL(str(found[0]))) if len(found) == 1 else None
    except (ImportError, OSError, AttributeError, ValueError):
        return None
