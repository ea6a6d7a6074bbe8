"""The question files of LLaVA's own evaluation (haotian-liu/LLaVA, scripts/v1_5/eval), read row by row.

- `.jsonl`, a line each: `{"question_id", "image"?, "text", "category"?}`; most sets. `answer` may be there too, the
  right answer, and is then scored.
- `.json`, a list of `{"id", "image"?, "conversations": [{"from", "value"}, ...]}`: ScienceQA.
- `.tsv`, with columns `index`, `question`, `hint`, `A` to `D`, `image` (base64) and `answer`: MMBench.

Whoever made a file, its reading ends: what is wrong with a row is noted down in the row's place.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.data.questions import without
from models.errors import CommandError
from models.io.untrusted import read_bytes

PLACEHOLDER = "<image>"
LETTER = "Answer with the option's letter from the given choices directly."
OPTIONS = ("A", "B", "C", "D")
SHORT, LONG = 128, 1024  # max_new_tokens of LLaVA's loader, and of its other scripts
_MOST_FIELD = 1 << 28  # characters of a TSV's field: images of 200 MB
_MOST_BYTES = 2**31  # of a file, which is held whole
_MISSING = ("", "nan", "none")  # what pandas, and so LLaVA, reads as no value


@dataclasses.dataclass(frozen=True)
class Row:
    """A question of a file."""

    line: int  # where it stands, from 1 on: line, item of the list, or row below the header
    id: str | int | None = None  # its `question_id`
    text: str = ""  # what is asked, without placeholders
    image: str | None = None  # path in the images' folder, or base64
    encoded: bool = False  # whether `image` is base64
    prompt: str = ""  # what LLaVA's scripts write as `prompt` of the answer
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what else they write
    answer: str | None = None  # the right one, where the file tells
    problem: str = ""  # why it cannot be asked


class _Problem(Exception):
    """What is wrong with a row."""


@dataclasses.dataclass(frozen=True)
class File:
    """A question file."""

    rows: list[Row]  # all of them, in order
    max_new_tokens: int  # what LLaVA's script for such files says
    sha256: str  # of its content


def read(path: Path) -> File:
    """Read a file whole; CommandError where that cannot be done."""
    if path.suffix not in _READERS:
        raise CommandError(f"{path}: a question file ends in {', '.join(_READERS)}")
    reader, tokens = _READERS[path.suffix]
    try:
        content = read_bytes(path, CommandError, most=_MOST_BYTES)
        rows = list(reader(content))
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError, csv.Error, _Problem) as error:
        raise CommandError(f"{path} cannot be read as {path.suffix}: {_line(error)}") from error
    if not rows:
        raise CommandError(f"{path} has no questions")
    return File(rows, tokens, hashlib.sha256(content).hexdigest())


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _checked(line: int, value: Any, make: Callable[[dict[str, Any]], Row]) -> Row:
    """A row from what stands in its place, or what is wrong with that."""
    found: str | int | None = None
    try:
        if not isinstance(value, dict):
            raise _Problem(f"it is no JSON object but {type(value).__name__}")
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        name = next((name for name in ("question_id", "id", "index") if name in value), "question_id")
        given = value.get(name)
        if isinstance(given, bool) or not isinstance(given, (str, int)):
            raise _Problem(f"{name} is {'missing' if given is None else 'neither a text nor a whole number'}")
        found = given
        return dataclasses.replace(make(value), line=line, id=found)
    except UnicodeEncodeError:
        return Row(line, found, problem="it holds half a surrogate pair, which is no text")
    except _Problem as error:
        return Row(line, found, problem=str(error))


def _text(row: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
    value = row.get(name)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise _Problem(f"{name} is {'missing' if value is None else 'no text'}")
    return value


def _jsonl(content: bytes) -> Iterator[Row]:
    for line, text in enumerate(content.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Row(line, problem=f"broken JSON ({_line(error)})")
            continue
        yield _checked(line, value, _jsonl_row)


def _jsonl_row(row: dict[str, Any]) -> Row:
    text = without(_text(row, "text"), PLACEHOLDER)
    answer = None if row.get("answer") is None else _text(row, "answer")
    return Row(0, text=text, image=_text(row, "image", optional=True) or None, prompt=text, answer=answer)


def _science(content: bytes) -> Iterator[Row]:
    values = json.loads(content)
    if not isinstance(values, list):
        raise _Problem("expected a list")
    for line, value in enumerate(values, 1):
        yield _checked(line, value, _science_row)


def _science_row(row: dict[str, Any]) -> Row:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        raise _Problem("conversations has no first turn")
    text = without(_text(turns[0], "value"), PLACEHOLDER).strip()
    text, image = f"{text}\n{LETTER}", _text(row, "image", optional=True) or None
    return Row(0, text=text, image=image, prompt=text if image is None else f"{PLACEHOLDER}\n{text}")


def _mmbench(content: bytes) -> Iterator[Row]:
    csv.field_size_limit(_MOST_FIELD)
    table = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter="\t")
    header = next(table, [])
    if missing := [name for name in ("index", "question", "A", "image") if name not in header]:
        raise _Problem(f"its header has no column {missing[0]}")
    for line, cells in enumerate(table, 1):
        if len(cells) != len(header):
            yield Row(line, problem=f"it has {len(cells)} columns, the header {len(header)}")
            continue
        value: dict[str, Any] = {name: _there(cell) for name, cell in zip(header, cells, strict=True)}
        if (index := value["index"] or "").isdecimal():
            value["index"] = int(index)
        yield _checked(line, value, _mmbench_row)


def mmbench_question(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What LLaVA asks of a row of MMBench, before the suffix, and the options among `A` to `D` that it has."""
    options = list[str]()
    for letter in OPTIONS:
        if (option := _there(row.get(letter))) is None:
            break
        options.append(option)
    hint, listed = _there(row.get("hint")), map(". ".join, zip(OPTIONS, options, strict=False))
    return "\n".join([*([hint] if hint else []), row["question"], *listed]), options


def _there(value: Any) -> Any:
    """None for what pandas, and so LLaVA, reads as no value."""
    return None if value is None or str(value).strip().lower() in _MISSING else value


def _mmbench_row(row: dict[str, Any]) -> Row:
    _text(row, "question")
    text, options = mmbench_question(row)
    text = without(text, PLACEHOLDER)
    extra = {"options": options, "option_char": list(OPTIONS[: len(options)])}
    return Row(
        0,
        text=f"{text}\n{LETTER}",
        image=_text(row, "image"),
        encoded=True,
        prompt=text,
        extra={"round_id": 0} | extra,
        answer=row.get("answer"),
    )


_READERS = {".jsonl": (_jsonl, SHORT), ".json": (_science, LONG), ".tsv": (_mmbench, LONG)}
