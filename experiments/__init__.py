"""Commands that evaluate, measure, train and show."""

import os

# On a CPU the information score calls LAPACK, whose threads (OpenBLAS, inside SciPy) spin for 2^28 cycles, 0.1 s, after
# each call, and take the cores from what XLA runs next. 2^24, 6 ms, still spans LAPACK's own gaps; at 2^22 some thin
# singular value decompositions took twice their time. Read when SciPy is loaded, hence here.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "24")
