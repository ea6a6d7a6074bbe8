"""Answers to a harness's requests, each of which is asked once, whatever comes in between."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from experiments.core.journal import Journal
from experiments.core.workers import Call, Pool
from experiments.evaluation.worker import ModelWorker
from experiments.lmms.requests import Request, Requests, batches

SHAPE = {"keys": [str], "errors": {str: str}, "predictions": {str: list}, "lost?": {str: [float]}}
"""An entry of a journal: keys of requests, by cell a prediction for each; by their keys, what is wrong with others; and
by cell how much less likely vanilla's first token is, for each."""
_WINDOW = 16  # batches for each worker that are read ahead of their answers where there are several


@dataclasses.dataclass(frozen=True)
class Ask:
    """A call: ask cells about a batch of requests, or weigh the continuations that are given for them."""

    requests: Requests
    indices: Sequence[int]
    cells: Sequence[str]
    max_new_tokens: int
    continuations: Sequence[str] | None
    beside_vanilla: bool = False

    def __call__(self, worker: ModelWorker) -> dict[str, Any]:
        """Have a worker do it; see `ModelWorker.answer` and `ModelWorker.loglikelihoods`."""
        what = self.requests, self.indices, self.cells
        if self.continuations is None:
            return worker.answer(*what, max_new_tokens=self.max_new_tokens, beside_vanilla=self.beside_vanilla)
        return worker.loglikelihoods(*what, continuations=self.continuations)


class Answers:
    """What is known so far, and how to find out the rest. A batch's answers are on the disk before the next are asked.

    Args:
      pool: of `ModelWorker`.
      journal: of this process, of `SHAPE`.
      batch_size: of the workers.
      others: entries of other journals of the same settings.
      beside_vanilla: cells of which it matters how likely they leave vanilla's first token.

    Attributes:
      errors: what is wrong with requests that cannot be asked, by their keys.
    """

    def __init__(
        self,
        pool: Pool,
        journal: Journal,
        *,
        batch_size: int,
        others: Sequence[Mapping[str, Any]] = (),
        beside_vanilla: Collection[str] = (),
    ):
        self._pool, self._journal, self._size, self._beside = pool, journal, batch_size, frozenset(beside_vanilla)
        self._known, self.errors = defaultdict[str, dict[str, Any]](dict), dict[str, str]()
        self._lost = defaultdict[str, dict[str, float]](dict)
        for entry in [*others, *journal.entries]:
            self._learn(entry)

    def _learn(self, entry: Mapping[str, Any]) -> None:
        self.errors |= entry["errors"]
        for cell, values in entry["predictions"].items():
            self._known[cell] |= zip(entry["keys"], values, strict=True)
        for cell, values in entry.get("lost", {}).items():
            self._lost[cell] |= zip(entry["keys"], values, strict=True)

    def known(self, request: Request, cell: str) -> bool:
        """Whether a cell need not be asked this any more."""
        return request.key in self.errors or request.key in self._known[cell]

    def prediction(self, request: Request, cell: str) -> Any:
        """What a cell gave for a request that was asked; None where it could not be asked, see `errors`."""
        return None if request.key in self.errors else self._known[cell][request.key]

    def lost(self, requests: Sequence[Request], cell: str) -> list[float]:
        """How much less likely a cell makes vanilla's first token, for each request of which that is known."""
        return [self._lost[cell][one.key] for one in requests if one.key in self._lost[cell]]

    def ask(self, requests: Sequence[Request], cells: Sequence[str], bar: tqdm[Any]) -> None:
        """Have all asked that are not known.

        Args:
          requests: any, of one request kind or several.
          cells: names of those to ask.
          bar: of requests; moves on by the number of different ones.
        """
        calls = self._calls(requests, cells, bar)
        while window := list(itertools.islice(calls, _WINDOW * self._pool.count if self._pool.count > 1 else 1)):
            for _, found in self._pool.run(window):
                entry = {
                    "keys": [requests[number].key for number in found["indices"]],
                    "errors": {requests[int(number)].key: why for number, why in found["errors"].items()},
                    "predictions": {cell: columns["prediction"] for cell, columns in found["found"].items()},
                }
                compared = {cell: columns for cell, columns in found["found"].items() if "lost" in columns}
                if lost := {cell: columns["lost"] for cell, columns in compared.items() if cell in self._beside}:
                    entry["lost"] = lost
                self._journal.add(entry)
                self._learn(entry)
                bar.update(len(entry["keys"]) + len(entry["errors"]))

    def _calls(self, requests: Sequence[Request], cells: Sequence[str], bar: tqdm[Any]) -> Iterator[Call]:
        """One for each batch of which something is not known, its images read."""
        for part in batches(requests, self._size):
            own = [requests[number] for number in part]
            missing = [cell for cell in cells if not all(self.known(request, cell) for request in own)]
            if not missing:
                bar.update(len(part))
                continue
            given = [request.continuation for request in own if request.continuation is not None]
            read = Requests.read(requests, part)
            beside = not self._beside.isdisjoint(missing)
            yield Call(part[0], Ask(read, part, missing, own[0].max_new_tokens, given or None, beside))
