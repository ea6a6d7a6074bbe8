"""What is asked of workers, and what they must have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol


class Worker(Protocol):
    """What a worker must have, beside the methods that calls use."""

    def identity(self) -> Mapping[str, Any]:
        """What must be the same for all workers of a run, as JSON types: versions, code, weights."""
        ...


@dataclasses.dataclass(frozen=True)
class Call:
    """Something for a worker to do.

    Attributes:
      key: tells it from the others.
      work: called with the worker; it and what it gives can be pickled. `operator.methodcaller` is one.
      first: only the first worker does this: what is timed should be timed in one place.
    """

    key: Hashable
    work: Callable[[Any], Any]
    first: bool = False
