"""The arithmetic of a cut: how many tokens stay, survive the pruning and merge. Host-side, before any tracing."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Budget:
    """The three static counts of a cut, Python ints; frozen and hashable. `plan` makes it and checks them.

    Attributes:
        kept: K, the number of tokens that go on.
        survivors: S, the number that pass stage I (pruning), `min(N, floor(oversample * K))`.
        merged: M = S - K, the number that stage II merges into their most similar neighbour.

    Source: the counts of stages I and II of TokenCarve (arXiv 2503.10501).

    Examples:
        >>> budget = plan(576, keep=192)
        >>> budget.kept, budget.survivors, budget.merged, budget.anchors
        (192, 288, 96, 144)
    """

    kept: int
    survivors: int
    merged: int

    @property
    def anchors(self) -> int:
        """The best survivors, `floor(S / 2)`, which receive the merged ones (set A; the others are set B)."""
        return self.survivors // 2


def plan(num_tokens: int, keep: float | int, oversample: float = 1.5) -> Budget:
    """Turn `keep` into the static counts of a cut.

    Args:
        num_tokens: N, the number of tokens before the cut.
        keep: A float in (0, 1], the fraction to keep (`round(keep * N)`, at least 1), or an int in 1..N, the count
            itself. `1.0` and `N` keep everything; `1` keeps one token. A Python number or a NumPy scalar, as all
            numbers here; NumPy's count as the decimal they print, so `np.float32(0.1)` is 0.1.
        oversample: How many tokens per kept one pass stage I, in [1, 2]. `1` turns the merging off. Above 2 there
            would be more to merge than stage II can place.

    Returns:
        The `Budget`.

    Raises:
        TypeError: A number is a bool, an array (also a traced one) or anything else that is no number on the host.
        ValueError: `num_tokens`, `keep` or `oversample` is out of range.

    Source: section 3 of TokenCarve (arXiv 2503.10501) and its released code, for `oversample = 1.5`.

    Examples:
        >>> plan(576, 0.222)
        Budget(kept=128, survivors=192, merged=64)
        >>> plan(576, 127)
        Budget(kept=127, survivors=190, merged=63)
        >>> plan(576, 500)  # fewer than 1.5 K tokens exist
        Budget(kept=500, survivors=576, merged=76)
        >>> plan(576, 1.5)
        Traceback (most recent call last):
          ...
        ValueError: keep must be a fraction in (0, 1], or an int count, got 1.5
    """
    tokens = static_number(num_tokens)
    if not isinstance(tokens, int):
        raise TypeError(f"num_tokens must be an int, got {describe(num_tokens)}")
    if tokens < 1:
        raise ValueError(f"there must be at least one token to carve, got num_tokens={tokens}")
    kept = _count(tokens, keep)
    factor = static_number(oversample)
    if factor is None:
        raise TypeError(f"oversample must be a Python or NumPy number in [1, 2], got {describe(oversample)}")
    if not 1 <= factor <= 2:
        raise ValueError(f"oversample must be in [1, 2] (1 turns merging off, 1.5 is the paper's), got {factor}")
    # The small term keeps floor(1.1 * 10) and its like from falling to the float below.
    survivors = min(tokens, math.floor(factor * kept + 1e-9))
    return Budget(kept=kept, survivors=survivors, merged=survivors - kept)


def static_number(value: object) -> float | int | None:
    """`value` as a Python float or int, if it is one or a NumPy scalar; None for bools, arrays and anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(str(value))  # the shortest decimal: widening np.float32(0.1) would give 0.10000000149
    return value if isinstance(value, float | int) else None


def describe(value: object) -> str:
    """What an error message says of an argument that has the wrong type."""
    return f"{value!r} of type {type(value).__name__}"


def _count(num_tokens: int, keep: float | int) -> int:
    number = static_number(keep)
    if number is None:
        raise TypeError(
            "keep must be a float (a fraction in (0, 1]) or an int (a count), of Python or NumPy; it sets array "
            f"shapes, so it cannot be traced. Got {describe(keep)}"
        )
    if isinstance(number, int):
        if not 1 <= number <= num_tokens:
            raise ValueError(
                f"keep as a count must be in 1..{num_tokens} (there are {num_tokens} tokens), got {number}; "
                "write a float for a fraction"
            )
        return number
    if not 0 < number <= 1:  # also refuses NaN
        raise ValueError(f"keep must be a fraction in (0, 1], or an int count, got {number}")
    return max(1, round(number * num_tokens))
