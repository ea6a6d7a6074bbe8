"""From a folder to one HTML file: what results.json says, in a template, with all that it needs inside."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.core.results import write_text
from experiments.reports.html.kinds import page_of
from experiments.reports.html.page import Page
from models.errors import CommandError, one_line

FILE = "report.html"
LIMIT = 14_500_000  # bytes of a page, about: a gallery that would go beyond is cut short
_COMPACT: dict[str, Any] = {"separators": (",", ":")}
_SCRIPTS = ("theme.js", "board.js", "gallery.js", "plotly.js", "charts.js")  # in the order in which they run


def write(folder: Path) -> Path:
    """Write the report of a results folder into it.

    Args:
      folder: with results.json, and the images of a gallery where there is one.

    Returns:
      The file.

    Raises:
      CommandError: results.json is missing, damaged, or nothing that a command wrote.
      OSError: the file cannot be written.
    """
    text = render(folder)
    write_text(folder / FILE, text)
    return folder / FILE


def render(folder: Path) -> str:
    """The page of a results folder; the same for the same folder. Errors as for `write`."""
    path = folder / "results.json"
    report = _read(path)
    try:
        page = page_of(report, folder)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        raise CommandError(
            f"{path} is damaged, or was written by another version: {type(error).__name__}: {one_line(error)}"
        ) from error
    return _page(page)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.parent.is_dir():
        raise CommandError(f"{path.parent}: no such folder")
    try:
        # What is no number has no place in JSON, and browsers refuse it.
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except FileNotFoundError as error:
        raise CommandError(f"{path.parent} has no results.json; name a folder that a command has written to") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(report, dict):
        raise CommandError(f"{path} is no results.json of a command: it holds no fields")
    return report


def _page(page: Page) -> str:
    scripts = [(name, _source(name)) for name in _SCRIPTS]
    style = _source("page.css")
    gallery, left_out = _fitting(page.gallery, LIMIT - sum(len(text) for _, text in scripts))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.reports.html", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = _COMPACT
    return environment.get_template("page.html").render(
        page=page,
        gallery=gallery,
        left_out=left_out,
        charts={f"figure-{number}": figure.chart for number, figure in enumerate(page.figures)},
        style=Markup(style),
        scripts=[Markup(text) for _, text in scripts],
        policy=_policy([text for _, text in scripts]),
    )


def _policy(scripts: list[str]) -> str:
    """Nothing may be loaded from anywhere, and no script but ours may run."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    ours = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {ours}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
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
        text = (
            importlib.resources.files("experiments.reports.html").joinpath("assets", name).read_text(encoding="utf-8")
        )
    return re.sub(r"</(?=script|style)", r"<\\/", text, flags=re.IGNORECASE)


def _fitting(gallery: dict[str, Any] | None, decode_capacity: int) -> tuple[dict[str, Any] | None, int]:
    """As many scenes as there is room for, and how many are left out."""
    if gallery is None:
        return None, 0
    scenes = list[dict[str, Any]]()
    used = 0
    for scene in gallery["scenes"]:
        used += len(json.dumps(scene, **_COMPACT))
        if scenes and used > decode_capacity:
            break
        scenes.append(scene)
    return gallery | {"scenes": scenes}, len(gallery["scenes"]) - len(scenes)
