"""From a folder to one HTML file: what results.json says, in a template, with all that it needs inside."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import importlib.resources
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.core.results import write_text
from experiments.reports.html import board, reading
from experiments.reports.html.kinds import page_of
from experiments.reports.html.page import Page
from models.errors import CommandError, one_line

FILE = "report.html"
LIMIT = 14_500_000  # bytes of a page, about: a gallery that would go beyond is cut short
_JSON: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False}
_SCRIPTS = ("theme.js", "board.js", "gallery.js", "plotly.js", "charts.js")  # in the order in which they run
_DAMAGED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, StopIteration, RecursionError)


def write(folder: Path) -> Path:
    """Write the report of a results folder into it.

    Args:
      folder: with results.json, and the images of a gallery where there is one.

    Returns:
      The file.

    Raises:
      CommandError: results.json is missing, damaged, or not what a command wrote; a file is a link out of the
        folder.
      OSError: the file cannot be written.
    """
    write_text(folder / FILE, render(folder))
    return folder / FILE


def render(folder: Path) -> str:
    """The page of a results folder; the same for the same folder. Errors as for `write`."""
    report, notes = reading.results(folder)
    with _naming(str(folder / "results.json")):
        page = page_of(report, folder)
        return _html(dataclasses.replace(page, notes=[*notes, *page.notes]))


def write_board(folders: Sequence[Path], file: Path) -> None:
    """Write several comparisons' page; errors as for `write`, and where they cannot stand beside one another."""
    with _naming(", ".join(str(folder / "results.json") for folder in folders)):
        text = _html(board.page(folders))
    write_text(file, text)


@contextlib.contextmanager
def _naming(files: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise CommandError(
            f"{files} is damaged, or was written by another version: {type(error).__name__}: {one_line(error)}"
        ) from error


def _html(page: Page) -> str:
    scripts = [_source(name) for name in _SCRIPTS]
    gallery, left_out = _fitting(page.gallery, LIMIT - sum(map(len, scripts)))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.reports.html", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = _JSON
    charts = {f"figure-{number}": figure.chart for number, figure in enumerate(page.figures)}
    # Nothing may be loaded from anywhere, and no script but ours may run.
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return environment.get_template("page.html").render(
        page=page,
        gallery=gallery,
        left_out=left_out,
        charts=json.loads(json.dumps(charts), parse_constant=lambda _: None),  # the script takes null for NaN
        style=Markup(_source("page.css")),
        scripts=map(Markup, scripts),
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'",
    )


@functools.cache
def _source(name: str) -> str:
    """A script or style as it goes into the page, where nothing in it may end its element."""
    if name == "plotly.js":
        found = importlib.util.find_spec("plotly")
        if found is None or not found.submodule_search_locations:
            raise CommandError("the report needs plotly, which is not installed: pip install -e '.[experiments]'")
        text = Path(found.submodule_search_locations[0], "package_data", "plotly.min.js").read_text(encoding="utf-8")
    else:
        assets = importlib.resources.files("experiments.reports.html") / "assets"
        text = (assets / name).read_text(encoding="utf-8")
    return re.sub(r"</(?=script|style)", r"<\\/", text, flags=re.IGNORECASE)


def _fitting(gallery: dict[str, Any] | None, capacity: int) -> tuple[dict[str, Any] | None, int]:
    """As many scenes as fit into so many bytes, one at least, and how many are left out."""
    if gallery is None:
        return None, 0
    scenes, used = list[dict[str, Any]](), 0
    for scene in gallery["scenes"]:
        used += len(json.dumps(scene, **_JSON))
        if scenes and used > capacity:
            break
        scenes.append(scene)
    return gallery | {"scenes": scenes}, len(gallery["scenes"]) - len(scenes)
