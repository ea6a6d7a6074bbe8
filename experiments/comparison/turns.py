"""A second question about the same image, asked of the visual tokens that the first one left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.core.journal import Journal, OtherRunError
from experiments.core.methods import BASELINE
from experiments.core.runner import Runner
from experiments.core.workers import Call
from experiments.data.questions import QuestionSet
from experiments.evaluation.answers import Answers
from experiments.evaluation.batches import Batch
from experiments.evaluation.worker import ModelWorker
from models.engine.decode import loglikelihood
from models.engine.prompt import round_up

BUCKET = 16  # second turns of similar length share a compiled program
SHAPE = {"turns_of": [int], "turns": {str: {"said": [str], "right": [bool]}}}
"""An entry of a journal: numbers of first questions, and by cell what was answered to them and whether the second
question then got the right answer."""


def seconds(questions: QuestionSet, asked: Sequence[int]) -> dict[int, int]:
    """By first question the second: the next one about the same image that is of another kind, where there is one.

    Questions whose answer is not known are not asked second.
    """
    about = {index: questions.record(index) for index in asked}
    images: dict[int, list[int]] = {}
    for index, record in about.items():
        images.setdefault(record["scene"], []).append(index)
    found = {}
    for own in images.values():
        for at, first in enumerate(own):
            for second in (*own[at + 1 :], *own[:at]):
                other = about[second]["family"] != about[first]["family"] or not about[first]["family"]
                if other and about[second]["answer"] is not None:
                    found[first] = second
                    break
    return found


@dataclasses.dataclass(frozen=True)
class SecondTurn:
    """A call: the second question behind a cell's own answer to the first, on the cache that the first one left.

    The right answer is read along: it counts as given where each of its tokens, and the end behind it, is the
    likeliest.
    """

    indices: Sequence[int]
    then: Mapping[int, int]
    said: Mapping[str, Sequence[str]]

    def __call__(self, worker: ModelWorker) -> dict[str, Any]:
        """Have a worker do it."""
        worker.hold(list(self.said))
        entry: dict[str, Any] = {"turns_of": [], "turns": {name: {"said": [], "right": []} for name in self.said}}
        said = {name: dict(zip(self.indices, texts, strict=True)) for name, texts in self.said.items()}
        for batch in worker.batches.read(worker.questions, self.indices)[0]:
            entry["turns_of"] += batch.indices
            for name, columns in entry["turns"].items():
                given = [said[name][index] for index in batch.indices]
                columns["said"] += given
                columns["right"] += self._right(worker, batch, name, given)
        return entry

    def _right(self, worker: ModelWorker, batch: Batch, name: str, given: Sequence[str]) -> list[bool]:
        tokenizer, stop = worker.checkpoint.processor.tokenizer, worker.model.config.eos_token_ids[0]
        asked, answers = list[list[int]](), list[list[int]]()
        for index, text in zip(batch.indices, given, strict=True):
            second = worker.questions.sample(self.then[index])
            asked.append(worker.batches.encoder.next_turn(worker.questions.sample(index), text, second.text))
            answers.append([*tokenizer(f" {second.answer}", add_special_tokens=False)["input_ids"], stop])
        lengths = [(len(question), len(answer)) for question, answer in zip(asked, answers, strict=True)]
        width = round_up(max(map(sum, lengths)), BUCKET)
        tokens = np.full((len(batch.inputs.input_ids), width), stop, np.int32)
        for row, pair in enumerate(zip(asked, answers, strict=True)):
            tokens[row, : sum(lengths[row])] = [*pair[0], *pair[1]]
        made = worker.prefill(batch, worker.cells[name], width)
        greedy = np.asarray(loglikelihood(worker.model, made, tokens)[1])
        return [bool(greedy[row, begin : begin + count].all()) for row, (begin, count) in enumerate(lengths)]


def ask_second(
    runner: Runner, journal: Journal, answers: Answers, questions: QuestionSet, cells: Sequence[str], size: int
) -> tuple[dict[int, int], dict[str, dict[int, bool]]]:
    """Ask what the journal does not hold yet.

    Args:
      runner: does the work.
      journal: entries of `SHAPE` are taken from it and added to it.
      answers: to the first questions.
      questions: all of them.
      cells: by name; vanilla is one more.
      size: of a batch.

    Returns:
      By first question the second one; by cell and first question whether the second was answered rightly.
    """
    then = seconds(questions, answers.asked)
    known: dict[str, dict[int, bool]] = {name: {} for name in dict.fromkeys([BASELINE, *cells])}

    def take(entry: Mapping[str, Any]) -> None:
        for name, columns in entry["turns"].items():
            if any(len(values) != len(entry["turns_of"]) for values in columns.values()):
                raise OtherRunError(f"{journal.path} is damaged: {name} has not one value for each of turns_of")
            for index, said, right in zip(entry["turns_of"], columns["said"], columns["right"], strict=True):
                if name in known and index in then and said == answers.known[name][index]["prediction"]:
                    known[name][index] = right

    for entry in journal.entries:
        if "turns_of" in entry:
            take(entry)
    calls = []
    firsts = list(then)
    for at in range(0, len(firsts), size):
        part = firsts[at : at + size]
        if names := [name for name, found in known.items() if not found.keys() >= set(part)]:
            said = {name: [answers.known[name][index]["prediction"] for index in part] for name in names}
            calls.append(Call(at, SecondTurn(part, {index: then[index] for index in part}, said)))
    done = sum(map(len, known.values()))

    def count(entry: Mapping[str, Any]) -> int:
        return len(entry["turns_of"]) * len(entry["turns"])

    bar = {"unit": " answers", "first": "compiling", "description": "second questions"}
    for _, entry in runner.do(calls, total=len(firsts) * len(known), initial=done, size=count, **bar):
        journal.add(entry)
        take(entry)
    return then, known
