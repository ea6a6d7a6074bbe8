"""Pipes, folders, loops, devices and links out of a folder in the place of every file that is read."""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import models
from experiments import bench, train
from experiments import eval as evaluation
from experiments import report as report_command
from experiments.core import results
from experiments.core.journal import Journal
from experiments.data import formats
from experiments.reports import html
from experiments.training.stages import claim_folder
from models import convert
from models.errors import CheckpointError, CommandError
from models.io import shards
from tests.hostile.case import Case
from tests.hostile.flags import call

KINDS = ("pipe", "folder", "device", "huge")
HUGE = 2**43
"""Bytes of a file that is nothing but a hole."""


def _put(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(HUGE)


def read_instead(path: Path, kind: str, read: Callable[[], object]) -> None:
    """Read a file while something else is in its place."""
    kept = path.with_name(f"{path.name}.kept")
    if there := path.exists():
        path.rename(kept)
    try:
        _put(path, kind)
        read()
    finally:
        path.rmdir() if kind == "folder" else path.unlink(missing_ok=True)
        if there:
            kept.rename(path)


def _index(folder: Path) -> None:
    if problems := shards.open_folder(folder).problems:
        raise CheckpointError(folder, problems)


def known(folder: Path, report: Path, converted: Path) -> Iterator[Case]:
    """All of them.

    Args:
      folder: empty.
      report: of good results with a gallery.
      converted: a checkpoint that `models.convert` made.
    """
    image = next((report / "gallery").iterdir())
    chunk = next(path for path in sorted((converted / "weights").glob("*/*")) if not path.name.startswith("."))
    readers: dict[Path, Callable[[], object]] = {
        folder / "answers.jsonl": lambda: Journal(folder / "answers.jsonl", {}),
        folder / "results.json": lambda: results.claim(folder, "eval"),
        folder / "settings.json": lambda: claim_folder(folder, {}, []),
        folder / shards.INDEX: lambda: _index(folder),
        **{
            folder / f"q{end}": functools.partial(formats.read, folder / f"q{end}")
            for end in (".jsonl", ".json", ".tsv")
        },
        report / "results.json": lambda: html.render(report),
        image: lambda: html.render(report),
        chunk: lambda: models.from_pretrained(converted),
        converted / "config.json": lambda: models.from_pretrained(converted),
    }
    for path, read in readers.items():
        for kind in KINDS:
            attempt = functools.partial(read_instead, path, kind, read)
            yield Case(f"a {kind} for {path.parent.name}/{path.name}", attempt, "refused", path.name.split(".")[0])
    attempt = functools.partial(_link, image, lambda: html.render(report))
    yield Case("a link out of the gallery", attempt, "refused", "link")
    attempt = functools.partial(_copy, converted, folder.parent / "copied")
    yield Case("a link out of a checkpoint", attempt, "refused", "link")
    for main in (evaluation.main, report_command.main, train.main, bench.main, convert.main):
        yield Case(f"NUL for {main.__module__}", functools.partial(call, main, ["a\0b"]), "refused", "NUL")


def _link(path: Path, read: Callable[[], object]) -> None:
    kept = path.with_name(f"{path.name}.kept")
    path.rename(kept)
    try:
        path.symlink_to("/etc/hostname")
        read()
    finally:
        path.unlink()
        kept.rename(path)


def _copy(converted: Path, copied: Path) -> None:
    try:
        shutil.copytree(converted, copied)
        (copied / "more.json").symlink_to("/etc/hostname")
        convert.to_hf(copied, copied.with_name("hf"))
    except CommandError:
        raise
    finally:
        shutil.rmtree(copied)
