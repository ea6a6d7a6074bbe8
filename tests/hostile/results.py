"""What runs leave behind, changed by somebody: journals, results.json with its gallery, folders of other commands."""

import dataclasses
import functools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.comparison.run import SHAPE
from experiments.core import results
from experiments.core.journal import Journal
from experiments.data.scene_questions import SceneQuestions
from experiments.evaluation.answers import Answers
from experiments.reports import html
from tests import reports
from tests.hostile.case import Case
from tests.hostile.images import mutate
from tests.hostile.values import any_change

SETTINGS = {"kind": "eval", "seed": 0}
CELLS = ("vanilla", "tokencarve")
KINDS = ("eval", "questions", "compare", "rank", "reproduce", "bench")
QUESTIONS = SceneQuestions(2, 0)


@dataclasses.dataclass(frozen=True)
class Folders:
    """Good results, and a folder whose files are exchanged, case by case."""

    folder: Path
    reports: dict[str, dict[str, Any]]

    @classmethod
    def make(cls, folder: Path) -> "Folders":
        made = {"eval": reports.evaluation, "compare": reports.comparison}
        found = {name: make(_empty(folder / name)) for name, make in made.items()}
        _empty(folder / "run")
        return cls(folder, found)

    def read(self, data: bytes) -> None:
        """Go on with a journal, up to the table."""
        path = self.folder / "run" / "answers.jsonl"
        path.write_bytes(data)
        try:
            answers = Answers(CELLS, Journal(path, SETTINGS, shape=SHAPE), len(QUESTIONS))
            right, records = answers.scored(QUESTIONS)
            assert all(len(own) == len(records) for own in right.values())
            for name in CELLS:
                answers.agreement(name)
            json.dumps(answers.records(QUESTIONS), allow_nan=False)
        finally:
            path.unlink()

    def show(self, kind: str, data: bytes) -> None:
        """Make the page of a results.json; what it shows must be JSON that a browser reads."""
        (self.folder / kind / "results.json").write_bytes(data)
        page = html.render(self.folder / kind)
        for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL):
            json.loads(text, parse_constant=_never)

    def claim(self, name: str, own: str, other: str) -> None:
        """Begin a run of one kind where another one left a file."""
        path = self.folder / "run" / name
        about = {"kind": other}
        path.write_text(json.dumps(about if name == "results.json" else {"settings": about}) + "\n")
        try:
            results.claim(path.parent, own)
        finally:
            path.unlink()


def _never(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _journal() -> list[Any]:
    def entry(indices: list[int]) -> dict[str, Any]:
        columns = {"prediction": ["LEAF"] * len(indices), "kl": [0.5] * len(indices)}
        return {"indices": indices, "errors": {"5": "cannot be read"}, "found": dict.fromkeys(CELLS, columns)}

    times = dict.fromkeys(CELLS, 0.25)
    more = {"prefill_s": times, "cache_bytes": times}
    return [{"settings": SETTINGS}, entry([0, 1]), entry([2, 3, 4]) | more, {"round": {"prefill_s": {}, "own_s": {}}}]


def _lines(entries: list[Any]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def known(folders: Folders) -> Iterator[Case]:
    """Good ones, wrong ones, and every kind in the folder of every other."""
    yield Case("a good journal", functools.partial(folders.read, _lines(_journal())), "worked")
    torn = _lines(_journal()) + b'{"indices": [5'
    yield Case("a torn journal", functools.partial(folders.read, torn), "worked")
    for wrong in (None, 5, [], "", {}, {"indices": [5]}, {"indices": [5], "errors": {}, "found": {}, "more": 1}):
        entries, want = [*_journal(), wrong], None if isinstance(wrong, dict) and "found" in wrong else "refused"
        says = "" if want is None else "line 5"
        yield Case(f"an entry {wrong}", functools.partial(folders.read, _lines(entries)), want, says)
        settings = [{"settings": wrong}, *_journal()[1:]]
        yield Case(f"settings {wrong}", functools.partial(folders.read, _lines(settings)), "refused")
    for prediction in (5, None, ["LEAF"], {}, float("nan")):
        entries = _journal()
        entries[1]["found"]["vanilla"]["prediction"] = [prediction, "LEAF"]
        yield Case(f"a prediction {prediction}", functools.partial(folders.read, _lines(entries)), "refused", "line 2")
    for name in ("results.json", "answers.jsonl", "measured.jsonl"):
        for own in KINDS:
            for other in KINDS:
                attempt, want = (
                    functools.partial(folders.claim, name, own, other),
                    "worked" if own == other else "refused",
                )
                yield Case(f"{own} where {other} left {name}", attempt, want)
    for kind, report in folders.reports.items():
        data = json.dumps(report).encode()
        yield Case(f"the page of {kind}", functools.partial(folders.show, kind, data), "worked")


def random_journal(folders: Folders, generator: random.Random, number: int) -> Case:
    """Some entry or all the file changed."""
    entries = _journal()
    if generator.random() < 0.2:
        said, data = "mutated", mutate(_lines(entries), generator)
    else:
        at = generator.randrange(len(entries))
        said, line = any_change(entries[at], generator)
        data = b"".join([_lines(entries[:at]), line.replace(b"\n", b" "), b"\n", _lines(entries[at + 1 :])])
    return Case(f"journal {number}: {said}", functools.partial(folders.read, data))


def random_page(folders: Folders, generator: random.Random, number: int) -> Case:
    """results.json changed."""
    kind = generator.choice(sorted(folders.reports))
    said, data = any_change(folders.reports[kind], generator)
    return Case(f"results.json of {kind} {number}: {said}", functools.partial(folders.show, kind, data))
