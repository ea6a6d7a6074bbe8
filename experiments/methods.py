"""What an evaluation compares: registered compressors, each where it is meant to work, at one count."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.cli import CommandError
from experiments.summary import BASELINE
from models.engine.plan import TOKENCARVE_LAYER, Carve, Cut, parse, resolve
from tokencarve_jax import COMPRESSORS, Compressor


def choices() -> list[str]:
    """Names of what can be compared."""
    return sorted(COMPRESSORS)


def find(name: str) -> Compressor:
    """A registered compressor, or one of the user's own: `package.module:object` or `path/to/file.py:object`.

    The object is a Compressor, or a function as `Compressor` takes it, which is then one at a decoder layer.

    Raises:
      CommandError: there is no such method.
    """
    source, colon, attribute = name.rpartition(":")
    if not colon:
        if name not in choices():
            raise CommandError(f"no method is named {name!r}; there are {', '.join(choices())}")
        return COMPRESSORS[name]
    try:
        found = getattr(_module(source), attribute)
        return found if isinstance(found, Compressor) else Compressor(attribute, found)
    except Exception as error:  # the user's code may raise anything
        raise CommandError(f"method {name}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _module(source: str) -> Any:
    if not source.endswith(".py"):
        return importlib.import_module(source)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cut(compressor: Compressor, keep: float | int) -> Carve:
    """One cut, where the compressor is meant to work."""
    place = TOKENCARVE_LAYER if compressor.at == "decoder" else compressor.at
    return ((place, compressor, keep),)


@dataclasses.dataclass(frozen=True)
class Method:
    """What a name on the command line stands for.

    Attributes:
      name: in tables.
      version: of the source of a method of the user's own; empty for registered ones.
      cuts: from a count of visual tokens to a schedule.
    """

    name: str
    version: str
    cuts: Callable[[int], Carve]


SCHEDULES: tuple[str, ...] = ()


def method(name: str, *, num_layers: int, num_visual: int) -> Method:
    """A method by its name, as in `find`.

    Args:
      name: of a registered compressor or of the user's own.
      num_layers: of the decoder.
      num_visual: tokens before the first cut.

    Raises:
      CommandError: there is no such method.
    """
    del num_layers, num_visual
    compressor = find(name)
    return Method(compressor.name, _version(compressor), lambda kept: cut(compressor, kept))


def _version(compressor: Compressor) -> str:
    """Changes with the file that a method is in."""
    if COMPRESSORS.get(compressor.name) is compressor:
        return ""
    try:
        return hashlib.sha256(Path(inspect.getfile(compressor.select)).read_bytes()).hexdigest()[:8]
    except (TypeError, OSError):
        return ""


def readable(cut: Cut) -> str:
    """A cut as text: `tokencarve@2=128`."""
    return f"{cut.compressor.name}@{cut.place}={cut.keep}"


def check_told(compressor: Compressor, *, clip: Any) -> None:
    """Find out before the work that a method needs a CLIP and there is none.

    Raises:
      CommandError: so it is.
    """
    if clip is None and "relevance" in compressor.required:
        raise CommandError(f"{compressor.name} needs to know how relevant tokens are to the question; pass --clip too")


def to_compare(llava: Any, keep: float | int, names: Sequence[str], *, clip: Any = None) -> dict[str, Carve]:
    """Vanilla, and the methods of these names at the same count.

    Args:
      llava: the model.
      keep: how many visual tokens are left.
      names: of the methods.
      clip: what tells relevance, or None.

    Raises:
      CommandError: the model cannot be carved like that, or there is no such method.
    """
    compressors = [find(name) for name in names]
    for compressor in compressors:
        check_told(compressor, clip=clip)
    cuts = {compressor.name: cut(compressor, keep) for compressor in compressors}
    if len(cuts) < len(names) or BASELINE in cuts:
        raise CommandError(f"of the methods {', '.join(names)} two have one name, or one is called {BASELINE!r}")
    for schedule in cuts.values():
        try:
            resolve(parse(schedule, num_layers=llava.config.text.num_layers), llava.config.tokens_per_image)
        except (TypeError, ValueError) as error:
            raise CommandError(f"keep={keep}: {error}") from error
    return {BASELINE: None} | cuts
