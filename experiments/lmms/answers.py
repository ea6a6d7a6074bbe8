"""Answers to a harness's requests, each of which is asked once, whatever comes in between."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from operator import methodcaller
from typing import Any

from tqdm import tqdm

from experiments.core import workers
from experiments.core.journal import Journal
from experiments.core.workers import Call
from experiments.lmms.requests import Read, Request, batches

_WINDOW = 16  # batches for each worker that are read ahead of their answers where there are several


class Answers:
    """Asks workers what no journal holds yet. A batch's answers are on the disk before the next are asked for.

    Args:
      pool: of `experiments.evaluation.question_asker.QuestionAsker`.
      journal: of this process.
      batch_size: of the workers.
      others: entries of other journals of the same settings.
    """

    def __init__(
        self,
        pool: workers.Pool,
        journal: Journal,
        *,
        batch_size: int,
        others: Sequence[dict[str, Any]] = (),
    ):
        self._pool, self._journal, self._size = pool, journal, batch_size
        self._said, self.errors = dict[str, dict[str, Any]](), dict[str, str]()
        for entry in [*others, *journal.entries]:
            self._learn(entry["answers"])

    def _learn(self, records: Sequence[dict[str, Any]]) -> None:
        for record in records:
            if "error" in record:
                self.errors[record["key"]] = record["error"]
            else:
                self._said.setdefault(record["key"], {}).update(record["said"])

    def known(self, request: Request, name: str) -> bool:
        """Whether a method need not be asked this any more."""
        return request.key in self.errors or name in self._said.get(request.key, {})

    def said(self, request: Request, name: str) -> Any:
        """What a method said to a request that was asked; None where it could not be asked, see `errors`."""
        return self._said[request.key][name] if request.key not in self.errors else None

    def ask(self, requests: Sequence[Request], names: Sequence[str], bar: tqdm[Any]) -> None:
        """Have all asked that are not known.

        Args:
          requests: any, of one request kind or several.
          names: of the methods.
          bar: of requests; moves on by the number of different ones.
        """
        calls = self._calls(requests, names, bar)
        while window := list(itertools.islice(calls, _WINDOW * self._pool.count if self._pool.count > 1 else 1)):
            for _, found in self._pool.run(window):
                records = [
                    {"key": requests[record.pop("sample")].key} | record for record in map(dict[str, Any], found)
                ]
                self._journal.add({"answers": records})
                self._learn(records)
                bar.update(len(records))

    def _calls(self, requests: Sequence[Request], names: Sequence[str], bar: tqdm[Any]) -> Iterator[Call]:
        """One for each batch of which something is not known, its images read."""
        for part in batches(requests, self._size):
            missing = [name for name in names if not all(self.known(requests[number], name) for number in part)]
            if not missing:
                bar.update(len(part))
                continue
            yield Call(part[0], self._work(requests, part, missing))

    @staticmethod
    def _work(requests: Sequence[Request], part: Sequence[int], names: Collection[str]) -> Any:
        first, read = requests[part[0]], Read.of(requests, part)
        if first.continuation is None:
            return methodcaller("answer", read, part, max_new_tokens=first.max_new_tokens, only=names)
        continuations = [requests[number].continuation for number in part]
        return methodcaller("loglikelihoods", read, part, continuations=continuations, only=names)
