"""What an evaluation compares: compressors, each where it is meant to work, at one count; and schedules of cuts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments.metrics.costs import prefill_flops
from experiments.metrics.summary import BASELINE
from models.engine.official import layer_average, pyramiddrop_schedule, sparsevlm_schedule
from models.engine.plan import TOKENCARVE_LAYER, Carve, Schedule, parse, resolve
from models.errors import CommandError
from tokencarve_jax import COMPRESSORS, Compressor

# The authors' cuts at several layers, to a count that is the average over the layers
OFFICIAL = {"pyramiddrop-schedule": pyramiddrop_schedule, "sparsevlm-schedule": sparsevlm_schedule}


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
      cuts: from a budget, a fraction or a count, to a schedule.
    """

    name: str
    cuts: Callable[[float | int], Carve]


def method(name: str, *, num_layers: int, num_visual: int) -> Method:
    """A compressor as in `find` by one cut, or an official schedule, whose budget is the layer average.

    Args:
      name: of either.
      num_layers: of the decoder.
      num_visual: tokens before the first cut.

    Raises:
      CommandError: there is no such method.
    """
    if name in OFFICIAL:
        return Method(name, functools.partial(OFFICIAL[name], num_layers, num_visual))
    compressor = find(name)
    return Method(compressor.name, functools.partial(cut, compressor))


def named(names: Sequence[str], *, num_layers: int, num_visual: int, taken: Collection[str]) -> list[Method]:
    """Several of them, each of which is a row of a table.

    Args:
      names: see `method`.
      num_layers: see `method`.
      num_visual: see `method`.
      taken: names of other rows.

    Raises:
      CommandError: see `method`; or two rows have one name.
    """
    found = [method(name, num_layers=num_layers, num_visual=num_visual) for name in names]
    if len({*taken, *(one.name for one in found)}) < len(taken) + len(found):
        raise CommandError(f"of the methods {', '.join(names)} two have one name, or one is called {BASELINE!r}")
    return found


def version(compressor: Compressor) -> str:
    """Changes with the file that a method of the user's own is in; empty for registered ones."""
    if COMPRESSORS.get(compressor.name) is compressor:
        return ""
    try:
        source = Path(inspect.getfile(compressor.select)).read_bytes()
    except (TypeError, OSError):
        return ""
    return f"#{hashlib.sha256(source).hexdigest()[:8]}"


def own(compressors: Iterable[Compressor]) -> dict[str, str]:
    """Those that are the user's own, each with what changes when its file is edited."""
    return {one.name: changing for one in compressors if (changing := version(one))}


def identity(llava: Any, compared: Mapping[str, Carve]) -> dict[str, Any]:
    """What tells a run's `methods` from another's, as JSON types: which, the tokens they leave, and `own_methods`."""
    layers = llava.config.text.num_layers
    used = (cut.compressor for carve in compared.values() for cut in parse(carve, num_layers=layers))
    left = {name: visual_tokens(llava, carve) for name, carve in compared.items()}
    return {"methods": left, "own_methods": own(used)}


def check_told(cuts: Schedule, *, clip: Any) -> None:
    """Find out before the work that a method needs a CLIP and there is none.

    Raises:
      ValueError: so it is.
    """
    for one in cuts if clip is None else ():
        if "relevance" in one.compressor.required:
            name = one.compressor.name
            raise ValueError(f"{name} needs to know how relevant tokens are to the question; pass --clip too")


def to_compare(
    llava: Any,
    keep: float | int,
    names: Sequence[str],
    schedules: Mapping[str, Carve] = MappingProxyType({}),
    *,
    clip: Any = None,
) -> dict[str, Carve]:
    """Vanilla, the methods of these names at the same count, and schedules by their names.

    Args:
      llava: the model.
      keep: how many visual tokens are left.
      names: of the methods.
      schedules: cuts of the user's own, by their names.
      clip: what tells relevance, or None.

    Raises:
      CommandError: the model cannot be carved like that, or there is no such method.
    """
    layers, visual = llava.config.text.num_layers, llava.config.tokens_per_image

    def check(carve: Carve) -> None:
        check_told(resolve(parse(carve, num_layers=layers), visual).cuts, clip=clip)

    cuts: dict[str, Carve] = {}
    for one in named(names, num_layers=layers, num_visual=visual, taken=(BASELINE, *schedules)):
        with said(f"keep={keep}"):
            cuts[one.name] = one.cuts(keep)
            check(cuts[one.name])
    for name, schedule in schedules.items():
        with said(f"schedule {name}"):
            check(schedule)
    return {BASELINE: None} | cuts | dict(schedules)


@contextlib.contextmanager
def said(about: str) -> Iterator[None]:
    """Turn the errors of a schedule that cannot be into a `CommandError` that says what they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CommandError(f"{about}: {error}") from error


def visual_tokens(llava: Any, carve: Carve) -> tuple[int, float]:
    """How many of one image's tokens a cut, or the last of a schedule, leaves; and the average over the layers."""
    layers, visual = llava.config.text.num_layers, llava.config.tokens_per_image
    cuts = resolve(parse(carve, num_layers=layers), visual).cuts
    return int(cuts[-1].keep) if cuts else visual, layer_average(carve, layers, visual)


def facts(config: Any, carve: Carve, length: int) -> dict[str, Any]:
    """What there is to know about a schedule before it runs, as JSON types.

    Args:
      config: of the model.
      carve: the schedule.
      length: of a sequence, visual tokens included.

    Returns:
      `place` of each cut, the evidence that its compressor `reads`, its `paper`, each as text; and `flops` of the
      prefill of one question, at least.
    """
    cuts = resolve(parse(carve, num_layers=config.text.num_layers), config.tokens_per_image).cuts
    return about(cuts) | {"flops": prefill_flops(config, length, cuts)}


def about(cuts: Schedule) -> dict[str, str]:
    """`place`, `reads` and `paper` of `facts`."""
    places = [f"decoder layer {cut.place}" if isinstance(cut.place, int) else cut.place for cut in cuts]
    used = [cut.compressor for cut in cuts]
    return {
        "place": ", ".join(places),
        "reads": ", ".join(dict.fromkeys(name for one in used for name in one.evidence)),
        "paper": ", ".join(dict.fromkeys(one.paper for one in used if one.paper)),
    }
