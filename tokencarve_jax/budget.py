"""The arithmetic of a cut: how many tokens stay, survive the pruning and merge. Host-side, before any tracing."""

import dataclasses
import math


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
        """`floor(S / 2)`: the best survivors, which receive the merged ones (set A; the others are set B)."""
        return self.survivors // 2


def plan(num_tokens: int, keep: float | int, oversample: float = 1.5) -> Budget:
    """Turn `keep` into the static counts of a cut.

    Args:
        num_tokens: N, the number of tokens before the cut.
        keep: A Python float in (0, 1], the fraction to keep (`round(keep * N)`, at least 1), or a Python int in
            1..N, the count itself. `1.0` and `N` keep everything; `1` keeps one token.
        oversample: How many tokens per kept one pass stage I, in [1, 2]. `1` turns the merging off. Above 2 there
            would be more to merge than stage II can place.

    Returns:
        The `Budget`.

    Raises:
        TypeError: `keep` is a bool, an array or anything else that is not a Python float or int.
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
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int):
        raise TypeError(f"num_tokens must be a Python int, got {_describe(num_tokens)}")
    if num_tokens < 1:
        raise ValueError(f"there must be at least one token to carve, got num_tokens={num_tokens}")
    kept = _count(num_tokens, keep)
    if isinstance(oversample, bool) or not isinstance(oversample, float | int):
        raise TypeError(f"oversample must be a Python number in [1, 2], got {_describe(oversample)}")
    if not 1 <= oversample <= 2:
        raise ValueError(f"oversample must be in [1, 2] (1 turns merging off, 1.5 is the paper's), got {oversample}")
    # The small term keeps floor(1.1 * 10) and its like from falling to the float below.
    survivors = min(num_tokens, math.floor(oversample * kept + 1e-9))
    return Budget(kept=kept, survivors=survivors, merged=survivors - kept)


def _count(num_tokens: int, keep: float | int) -> int:
    if isinstance(keep, bool) or not isinstance(keep, float | int):
        raise TypeError(
            "keep must be a Python float (a fraction in (0, 1]) or a Python int (a count); it sets array shapes, "
            f"so it cannot be traced. Got {_describe(keep)}"
        )
    if isinstance(keep, int):
        if not 1 <= keep <= num_tokens:
            raise ValueError(
                f"keep as a count must be in 1..{num_tokens} (there are {num_tokens} tokens), got {keep}; "
                "write a float for a fraction"
            )
        return keep
    if not 0 < keep <= 1:  # also refuses NaN
        raise ValueError(f"keep must be a fraction in (0, 1], or an int count, got {keep}")
    return max(1, round(keep * num_tokens))


def _describe(value: object) -> str:
    return f"{value!r} of type {type(value).__name__}"
