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
from experiments.data.questions import QuestionSet, Sample
from experiments.evaluation.answers import Answers
from experiments.evaluation.batches import Batch
from experiments.evaluation.likelihood import padded
from experiments.evaluation.worker import ModelWorker
from models.engine.decode import loglikelihood

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
            samples = worker.questions.sample
            pairs = [(samples(index), samples(self.then[index])) for index in batch.indices]  # read once for all cells
            for name, columns in entry["turns"].items():
                given = [said[name][index] for index in batch.indices]
                columns["said"] += given
                columns["right"] += _right(worker, batch, name, pairs, given)
        return entry


def _right(
    worker: ModelWorker, batch: Batch, name: str, pairs: Sequence[tuple[Sample, Sample]], given: Sequence[str]
) -> list[bool]:
    """Whether a cell answers the second of each pair, behind what it said to the first."""
    tokenizer, stop = worker.checkpoint.processor.tokenizer, worker.model.config.eos_token_ids[0]
    texts, parts = list[list[int]](), list[slice]()
    for (first, second), said in zip(pairs, given, strict=True):
        question = worker.batches.encoder.next_turn(first, said, second.text)
        answer = [*tokenizer(f" {second.answer}", add_special_tokens=False)["input_ids"], stop]
        texts.append([*question, *answer])
        parts.append(slice(len(question), len(texts[-1])))
    tokens = padded(texts, len(batch.inputs.input_ids), stop)
    made = worker.prefill(batch, worker.cells[name], tokens.shape[1])
    greedy = np.asarray(loglikelihood(worker.model, made, tokens)[1])
    return [bool(greedy[row, part].all()) for row, part in enumerate(parts)]


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
