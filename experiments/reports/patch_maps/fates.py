"""From what a prefill's cuts did to what became of every patch of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.engine.sequence import CutRecord


def joined(cuts: Sequence[CutRecord], row: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Several cuts as if they were one.

    Args:
      cuts: of a prefill, in order; none leaves everything.
      row: which of the batch.
      count: visual tokens before the first.

    Returns:
      [K] which of the `count` tokens are left, and [count] which of the K each of them lives on in, or -1.
    """
    standing = fate = np.arange(count)
    for cut in cuts:
        indices, assignment = np.asarray(cut.indices[row]), np.asarray(cut.assignment[row])
        standing, fate = standing[indices], np.where(fate < 0, -1, assignment[fate])
    return standing, fate


def recorded(standing: np.ndarray, fate: np.ndarray, *, first: int, patches: int) -> dict[str, Any]:
    """The fate of an image's patches as JSON types.

    Args:
      standing: from `joined`.
      fate: from `joined`.
      first: which of the tokens the first patch is: 1 where a class token stands before them.
      patches: how many there are, row by row.

    Returns:
      `kept`, the patches that stand, and `merged`, pairs of a patch and the one that it lives on in (-1 for a class
      token); what is in neither was dropped.
    """
    own = range(first, first + patches)
    stands = set(standing.tolist())
    return {
        "kept": [token - first for token in standing.tolist() if token in own],
        "merged": [
            [token - first, int(standing[fate[token]]) - first if standing[fate[token]] in own else -1]
            for token in own
            if fate[token] >= 0 and token not in stands
        ],
    }


def assignment(patches: int, fate: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `recorded`: [K] which patches stand, [patches] which of the K each lives on in, or -1."""
    standing = np.array(fate["kept"], int)
    rows = np.full(patches, -1)
    rows[standing] = np.arange(len(standing))
    for patch, host in fate["merged"]:
        rows[patch] = rows[host] if host >= 0 else -1
    return standing, rows


def grid_of(patches: int) -> int:
    """Patches along each side of an image.

    Raises:
      ValueError: they are no square.
    """
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patches are no square grid")
    return side
