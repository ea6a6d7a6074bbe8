"""From what a prefill's cuts did to a patch map: which patches of an image are kept, merged or dropped."""

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
      survivors: int [K], which of the `count` tokens are left.
      assignment: int [count], which of the K survivors each token lives on in, or -1.
    """
    survivors = assignment = np.arange(count)
    for cut in cuts:
        indices, to = np.asarray(cut.indices[row]), np.asarray(cut.assignment[row])
        survivors, assignment = survivors[indices], np.where(assignment < 0, -1, to[assignment])
    return survivors, assignment


def patch_map(survivors: np.ndarray, assignment: np.ndarray, *, first: int, patches: int) -> dict[str, Any]:
    """The map of one image as JSON types.

    Args:
      survivors: from `joined`.
      assignment: from `joined`.
      first: which of the tokens the first patch is: 1 where a class token stands before them.
      patches: how many there are, row by row.

    Returns:
      `kept`, the patches that survive, and `merged`, pairs of a patch and the one that it lives on in (-1 for a class
      token); what is in neither was dropped.
    """
    own, kept = range(first, first + patches), set(survivors.tolist())
    hosts = {token: int(survivors[assignment[token]]) for token in own if assignment[token] >= 0}
    return {
        "kept": [token - first for token in survivors.tolist() if token in own],
        "merged": [
            [token - first, host - first if host in own else -1] for token, host in hosts.items() if token not in kept
        ],
    }


def arrays_of(found: dict[str, Any], patches: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `patch_map`: survivors [K], and the assignment [patches] to one of the K, or -1."""
    survivors = np.array(found["kept"], int)
    assignment = np.full(patches, -1)
    assignment[survivors] = np.arange(len(survivors))
    for patch, host in found["merged"]:
        assignment[patch] = assignment[host] if host >= 0 else -1
    return survivors, assignment


def grid_of(patches: int) -> int:
    """Patches along each side of an image.

    Raises:
      ValueError: they are not a square grid.
    """
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patches are not a square grid")
    return side
