"""What a page reads from a results folder, which anybody may have made: regular files in it, and nothing else."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.data.image_files import open_image
from experiments.reports.gallery import QUALITY, image_path
from models.errors import CommandError, one_line
from models.io.untrusted import check_file, read_bytes

_LARGEST = 1e100  # no run measures more: sums and products of what is less stay finite
_NAMED = 8  # places that are named in a note


def results(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What results.json holds.

    Returns:
      Its fields, in which what is not a number, or is beyond any measure, is NaN; and a note that names such places.

    Raises:
      CommandError: it is missing, is not a file of this folder, or does not hold fields.
    """
    path = folder / "results.json"
    if not folder.is_dir():
        raise CommandError(f"{folder}: no such folder")
    if not os.path.lexists(path):
        raise CommandError(f"{folder} has no results.json; name a folder that a command has written to")
    content = read_bytes(path, CommandError, inside=[folder])
    odd = []

    def usable(text: str, kind: type = float) -> float:
        value = kind(text)
        if abs(value) <= _LARGEST:
            return value if abs(value) >= 1 / _LARGEST else kind(0)
        odd.append(text)
        return math.nan

    try:
        text = content.decode()
        # Integers are many, and seldom large.
        parse_int = functools.partial(usable, kind=int) if re.search(r"\d{100}", text) else None
        report = json.loads(text, parse_float=usable, parse_int=parse_int, parse_constant=usable)
        if not isinstance(report, dict):
            raise CommandError(f"{path} is not a results.json of a command: it holds no fields")
        places = itertools.islice((name for name, value in flat(report) if value != value), _NAMED) if odd else ()
        names = ", ".join(places)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
    return report, [f"Not numbers, or beyond any measure: {names}{more}."] if odd else []


def flat(value: Any, name: str = "", *, lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Names such as `methods[1].accuracy.overall.share`, and what is there; into lists only where it is asked for."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(part, f"{name}.{key}" if name else str(key), lists=lists)
    elif isinstance(value, list) and lists:
        for number, part in enumerate(value):
            yield from flat(part, f"{name}[{number}]")
    else:
        yield name, value


def image(folder: Path, sample: int) -> str | None:
    """A question's image as a data URI, encoded anew: nothing but its pixels gets into the page. None without a file.

    Raises:
      CommandError: it is not a file of this folder, or not an image.
    """
    path = image_path(folder, sample)
    if not os.path.lexists(path):
        return None
    check_file(path, CommandError, inside=[folder])
    data = io.BytesIO()
    open_image(path).save(data, "webp", quality=QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
