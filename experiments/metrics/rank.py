"""How many directions a matrix really has: numerical rank, entropy of the singular values, effective rank."""

from __future__ import annotations

import dataclasses

import numpy as np

from tokencarve_jax._blas import one_thread

TOLERANCE = 0.01  # a singular value counts towards the rank if it is larger than this share of the largest


@dataclasses.dataclass(frozen=True)
class Measures:
    """Of a stack of matrices, [...] each.

    Attributes:
      rank: int64, singular values above `TOLERANCE` times the largest.
      entropy: float64, of the singular values divided by their sum, in nats.
    """

    rank: np.ndarray
    entropy: np.ndarray

    @property
    def effective_rank(self) -> np.ndarray:
        """[...] float64: exp(entropy), from 1 to the number of singular values (Roy and Vetterli 2007)."""
        return np.exp(self.entropy)


def measure(matrices: np.ndarray) -> Measures:
    """Measure matrices by their singular values, all in float64.

    Rows and columns of zeros change nothing, so that matrices with fewer rows than others can be padded with them.
    The singular values themselves are what is normalised, as Roy and Vetterli do, and not their squares.

    Args:
      matrices: [..., N, D], of any float dtype.

    Returns:
      Rank and entropy [...]; of a matrix of zeros both are 0.

    Raises:
      ValueError: NaN or infinity.
    """
    # Imported here: it takes a second that `--help` should not wait for.
    from scipy.linalg import svdvals

    exact = np.asarray(matrices, np.float64)
    if not np.isfinite(exact).all():
        raise ValueError("the attention output holds NaN or infinity, and so has no singular values")
    one_thread()  # four times as fast for matrices of a few hundred rows, and the same to the last bit every time
    *batch, rows, columns = exact.shape
    values = np.stack([svdvals(one) for one in exact.reshape(-1, rows, columns)]).reshape(*batch, -1)
    share = values / np.maximum(values.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
    logarithm = np.log(share, where=share > 0, out=np.zeros_like(share))
    return Measures((values > TOLERANCE * values[..., :1]).sum(-1), -(share * logarithm).sum(-1))
