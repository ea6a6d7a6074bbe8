"""How many directions a matrix really has: its numerical rank, and the entropy of its singular values."""

from __future__ import annotations

import numpy as np

from tokencarve_jax._blas import one_thread

TOLERANCE = 0.01  # a singular value counts towards the rank if it is larger than this share of the largest


def measure(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure matrices by their singular values, in float64.

    Rows and columns of zeros change nothing, so matrices with fewer rows than others can be padded with them. Roy and
    Vetterli (2007) normalise the singular values themselves, not their squares; exp(entropy) is their effective rank.

    Args:
      matrices: [..., N, D], of any float dtype.

    Returns:
      Rank [...], int64, and entropy [...], float64, in nats; of a matrix of zeros both are 0.

    Raises:
      ValueError: NaN or infinity.
    """
    from scipy.linalg import svdvals  # imported here: it takes a second that `--help` should not wait for
    from scipy.special import entr

    exact = np.asarray(matrices, np.float64)
    if not np.isfinite(exact).all():
        raise ValueError("the attention output holds NaN or infinity, and so has no singular values")
    one_thread()  # four times as fast for matrices of a few hundred rows, and the same to the last bit every time
    values = svdvals(exact, check_finite=False)
    share = values / np.maximum(values.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
    return (values > TOLERANCE * values[..., :1]).sum(-1), entr(share).sum(-1)
