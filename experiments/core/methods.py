"""What an evaluation compares: compressors, each where it is meant to work, and the authors' schedules."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.engine.notation import Cut, with_options
from models.engine.official import pyramiddrop_schedule, sparsevlm_schedule
from models.engine.plan import TOKENCARVE_LAYER, Schedule, parse
from models.engine.relevance import RELEVANCE
from models.errors import CommandError
from tokencarve_jax import COMPRESSORS, Compressor, check

BASELINE = "vanilla"
# The authors' cuts at several layers, to a count that is the average over the layers
OFFICIAL: Mapping[str, Callable[[int, int, float | int], Schedule]] = {
    "pyramiddrop-schedule": pyramiddrop_schedule,
    "sparsevlm-schedule": sparsevlm_schedule,
    "sparsevlm-plus-schedule": functools.partial(sparsevlm_schedule, plus=True),
}


def choices() -> list[str]:
    """Names of what can be compared."""
    return sorted(COMPRESSORS)


def find(name: str) -> Compressor:
    """A registered compressor, or one of the user's own: `package.module:object` or `path/to/file.py:object`.

    The object is a Compressor, or a function as `Compressor` takes it, which is then one at a decoder layer. It is
    tried on small random tokens first (`tokencarve_jax.check`, seconds): a method that breaks the contract would become
    a false row of a table.

    Raises:
      CommandError: there is no such method, or it does not keep the contract; says what is broken.
    """
    source, colon, attribute = name.rpartition(":")
    if not colon:
        try:
            return COMPRESSORS[name]
        except KeyError as error:
            raise CommandError(error.args[0]) from error
    try:
        found = getattr(_module(source), attribute)
        compressor = found if isinstance(found, Compressor) else Compressor(attribute, found)
        check(compressor)
        return compressor
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and may try to end the process
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
    # As in `python mine.py`: modules beside it are found, and a dataclass finds its own module. Only while it runs:
    # what stays known by name would be sent to other processes by that name, which means nothing there.
    shadowed = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        del sys.modules[path.stem]
        if shadowed is not None:
            sys.modules[path.stem] = shadowed
    return module


@dataclasses.dataclass(frozen=True)
class Method:
    """What a name on the command line stands for; can be pickled.

    Attributes:
      name: in tables.
      compressor: of its one cut; None for the schedule of `OFFICIAL` that has its name.
      options: of that cut, attributes and values, as `divprune,kept` chooses them.
    """

    name: str
    compressor: Compressor | None
    options: tuple[tuple[str, Any], ...] = ()

    def schedule(
        self, keep: float | int, *, num_layers: int, num_visual: int, place: int | str | None = None
    ) -> Schedule:
        """The cut that leaves so many tokens where the compressor is meant to work, or official cuts of that average.

        With `place` the cut is there.

        Raises:
          TypeError, ValueError: there is no such schedule.
        """
        if self.compressor is None:
            return parse(OFFICIAL[self.name](num_layers, num_visual, keep), num_layers=num_layers)
        place = usual_place(self.compressor) if place is None else place
        return parse(Cut(place, self.compressor, keep, **dict(self.options)), num_layers=num_layers)


def usual_place(compressor: Compressor) -> int | str:
    """Where a compressor is meant to work: in the decoder that is TokenCarve's layer."""
    return TOKENCARVE_LAYER if compressor.at == "decoder" else compressor.at


def named(names: Sequence[str], *, taken: Collection[str] = ()) -> tuple[Method, ...]:
    """Several methods, each of which is a row of a table.

    Args:
      names: of compressors as in `find`, options of the cut behind commas (`divprune,kept`), or of official schedules.
      taken: names of other rows, beside vanilla.

    Raises:
      CommandError: there is no such method or option, or two rows have one name.
    """
    found = []
    for name in names:
        if name in OFFICIAL:
            found.append(Method(name, None))
            continue
        source, *words = name.split(",")
        with naming(f"method {name}"):
            compressor, options = with_options(find(source), words)
        found.append(Method(",".join([compressor.name, *words]), compressor, tuple(options.items())))
    taken = {BASELINE, *taken}
    if len({*taken, *(one.name for one in found)}) < len(taken) + len(found):
        raise CommandError(f"of the methods {', '.join(names)} two have one name, or one is called {BASELINE!r}")
    return tuple(found)


def version(compressor: Compressor) -> str:
    """Changes with the file that a method of the user's own is in, and with what is bound to it; "" for the registry's.

    Functions, those that `jax.jit` or another decorator wraps, a `functools.partial` and callable objects are followed
    to the code that they call.
    """
    if COMPRESSORS.get(compressor.name) == compressor:
        return ""
    select, bound = compressor.select, [repr(compressor.options)]
    while isinstance(select, functools.partial) or hasattr(select, "__wrapped__"):
        if isinstance(select, functools.partial):
            bound.append(repr((select.args, select.keywords)))
        select = select.func if isinstance(select, functools.partial) else select.__wrapped__
    if not inspect.isroutine(select):
        bound.append(repr(getattr(select, "__dict__", "")))
        select = type(select).__call__
    bound.append(repr([cell.cell_contents for cell in getattr(select, "__closure__", None) or ()]))
    with contextlib.suppress(TypeError, OSError):  # typed at a prompt, or compiled: there is no file
        bound.append(Path(inspect.getfile(select)).read_text(encoding="utf-8", errors="replace"))
    return f"#{hashlib.sha256(chr(0).join(bound).encode()).hexdigest()[:8]}"


def own(compressors: Iterable[Compressor]) -> dict[str, str]:
    """Those that are the user's own, each with what changes when its file is edited."""
    return {one.name: changing for one in compressors if (changing := version(one))}


def needs_clip(compressor: Compressor) -> bool:
    """Whether it cannot do without relevance to the question."""
    return not {*RELEVANCE}.isdisjoint(compressor.required)


def check_evidence(cuts: Schedule, *, clip: Any) -> None:
    """Raise ValueError, before the work, where a method needs a CLIP and there is none."""
    for one in cuts if clip is None else ():
        if needs_clip(one.compressor):
            name = one.compressor.name
            raise ValueError(f"{name} needs to know how relevant tokens are to the question; pass --clip too")


@contextlib.contextmanager
def naming(about: str) -> Iterator[None]:
    """Turn the errors of an impossible schedule into a `CommandError` that says what they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CommandError(f"{about}: {error}") from error


def about(cuts: Schedule) -> dict[str, str]:
    """What there is to know about cuts before they run: `place`, the evidence that they read, and `paper`."""
    places = [f"decoder layer {cut.place}" if isinstance(cut.place, int) else cut.place for cut in cuts]
    used = [cut.compressor for cut in cuts]
    return {
        "place": ", ".join(places),
        "reads": ", ".join(dict.fromkeys(name for one in used for name in one.evidence)),
        "paper": ", ".join(dict.fromkeys(one.paper for one in used if one.paper)),
    }
