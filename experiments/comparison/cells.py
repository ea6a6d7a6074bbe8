"""What is compared: every method at every budget, at an equal count of tokens and at an equal amount of compute.

A decoder layer that has not been cut yet sees all N tokens, so the same K costs more inside the decoder than before it.
At equal COUNT a method leaves K tokens where it is meant to work. At equal COMPUTE it leaves as many as cost, in
floating-point operations of the whole prefill, no more than TokenCarve at K in layer 2; for a cut before the decoder
those are the same as the layer-averaged number of tokens, unless the tower too has less to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from experiments.core import methods
from experiments.core.methods import BASELINE, Method
from experiments.evaluation.cells import Cell
from experiments.metrics.costs import prefill_flops
from experiments.reports.compare_tables import COMPUTE, COUNT, GIVEN, REFERENCE
from models.engine.model import VisionLanguageModel
from models.engine.notation import OPTIONS
from models.engine.plan import Schedule, resolve
from models.errors import CommandError
from tokencarve_jax import plan

KEEPS = (128, 64)  # budgets unless others are given
RANDOM = "random"
DOWNSAMPLED = "downsampled"  # no method: the image at a lower resolution, enlarged again


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
      budget: visual tokens that were asked for; None for a schedule of the user's own.
      basis: "count", "compute", or "given" for that.
      method: by name.
      key: of its cell, or None with the reason in `why_not`.
    """

    budget: int | None
    basis: str
    method: str
    key: str | None
    why_not: str = ""


@dataclasses.dataclass(frozen=True)
class AtLayer:
    """A method that cuts in one of several layers of the decoder, to the smallest budget or to one token.

    Attributes:
      method: by name.
      layer: in which it cuts.
      kept: visual tokens behind the cut.
      key: of its cell.
    """

    method: str
    layer: int
    kept: int
    key: str


@dataclasses.dataclass(frozen=True)
class Grid:
    """Everything to measure.

    Attributes:
      cells: by key, vanilla first; methods that come to the same share one.
      lines: of the tables.
      layers: of the protocol, else none.
    """

    cells: Mapping[str, Cell]
    lines: tuple[Line, ...]
    layers: tuple[AtLayer, ...] = ()


VIDEO = ("evs", "everest", "token-dynamics", "vidcom2")  # go by what changes between frames; an image has one
LAYERS = 4  # of the decoder, first and last among them, in which the protocol cuts
FORMS = {"renumbered": "", "kept": ",kept", "median": ",median"}
"""What a cut before the decoder does to the positions of its survivors, and how its method is then called."""


def default_methods(*, clip: bool) -> list[str]:
    """Every published method and control; of TokenCarve's variants the exact one and the calibrated one alone.

    Those for video are left out, and without a `clip` those that cannot do without one.
    """
    names = [name for name in methods.choices() if not name.startswith(f"{REFERENCE}-") and name not in VIDEO]
    names = [name for name in names if clip or not methods.needs_clip(methods.find(name))]
    return [*names, f"{REFERENCE}-svd", f"{REFERENCE}-calibrated", *methods.OFFICIAL, DOWNSAMPLED]


@dataclasses.dataclass(frozen=True)
class AtBudgets:
    """A `Comparison` of methods at several budgets.

    Attributes:
      methods: TokenCarve first.
      keeps: budgets, each a fraction or a count.
      schedules: by their names.
      downsampled: images at a lower resolution are one more.
      protocol: at the smallest budget methods of the decoder cut in its other layers too, and those before it leave
        their survivors at all kinds of positions.
    """

    square: ClassVar[bool] = True

    methods: tuple[Method, ...]
    keeps: tuple[float | int, ...]
    schedules: tuple[tuple[str, Schedule], ...] = ()
    downsampled: bool = False
    protocol: bool = False

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        keeps: Sequence[float | int],
        schedules: Mapping[str, Schedule] | None = None,
        *,
        protocol: bool = False,
    ) -> AtBudgets:
        """From names of methods, beside TokenCarve; errors as in `methods.named`."""
        names = [REFERENCE, *names, *((RANDOM, DOWNSAMPLED) if protocol else ())]
        wanted = [name for name in dict.fromkeys(names) if name != DOWNSAMPLED]
        found = methods.named(wanted, taken=(DOWNSAMPLED,))
        return cls(found, tuple(keeps), tuple((schedules or {}).items()), DOWNSAMPLED in names, protocol)

    def cells(self, model: VisionLanguageModel, *, length: int, visual: int) -> Mapping[str, Cell]:
        """See `Comparison`."""
        del visual
        return self.grid(model.config, length=length).cells

    @functools.lru_cache(maxsize=1)  # noqa: B019 - a process has one or two
    def grid(self, config: Any, *, length: int) -> Grid:
        """All cells for a model of this config, for sequences of that length.

        Raises:
          CommandError: a budget that leaves nothing out, or a schedule that cannot be.
        """
        visual, vanilla = config.tokens_per_image, _cell(config, BASELINE, ())
        budgets = list(dict.fromkeys(_budget(visual, keep) for keep in self.keeps))
        cells, lines = {BASELINE: vanilla}, list[Line]()

        def add(budget: int | None, basis: str, cell: Cell) -> None:
            cells.setdefault(key := _key(cell), cell)
            lines.append(Line(budget, basis, cell.method, key))

        for budget in budgets:
            most = prefill_flops(config, length, _at(config, self.methods[0], budget).cuts)
            for method, basis in itertools.product(self.methods, (COUNT, COMPUTE)):
                try:
                    kept = budget if basis == COUNT else _largest(config, method, most, length)
                    add(budget, basis, _at(config, method, kept))
                except ValueError as error:
                    lines.append(Line(budget, basis, method.name, None, str(error)))
        for budget in budgets if self.downsampled else ():  # at equal count alone: it saves nothing
            side = max(1, round((budget * config.vision.num_patches / visual) ** 0.5))
            add(budget, COUNT, dataclasses.replace(vanilla, method=DOWNSAMPLED, side=side))
        for name, schedule in self.schedules:
            with methods.naming(f"schedule {name}"):
                add(None, GIVEN, _cell(config, name, schedule))
        for method in self._forms() if self.protocol else ():
            with contextlib.suppress(ValueError):  # the method itself says above why it cannot
                add(min(budgets), COUNT, _at(config, method, min(budgets)))
        layers = list[AtLayer]()
        for layer, method, kept in self._layers(config, min(budgets)) if self.protocol else ():
            try:
                cell = _at(config, method, kept, layer)
            except ValueError:  # a layer that has not what the method needs
                continue
            cells.setdefault(key := _key(cell), cell)
            layers.append(AtLayer(method.name, layer, kept, key))
        return Grid(MappingProxyType(cells), tuple(lines), tuple(layers))

    def _forms(self) -> Iterator[Method]:
        """Methods that cut before the decoder, in the forms that are not among the methods."""
        known = {method.name for method in self.methods}
        for method, (form, suffix) in itertools.product(self.methods, FORMS.items()):
            before = method.compressor is not None and method.compressor.at != "decoder" and not method.options
            if before and (name := method.name + suffix) not in known:
                yield dataclasses.replace(method, name=name, options=(OPTIONS[form],))

    def _layers(self, config: Any, kept: int) -> Iterator[tuple[int, Method, int]]:
        """Where methods of the decoder cut beside their own place, and random tokens but one go."""
        last = config.text.num_layers - 1
        inside = [method for method in self.methods if method.compressor and method.compressor.at == "decoder"]
        for layer in sorted({1 + round(part * (last - 1) / (LAYERS - 1)) for part in range(LAYERS)}):
            yield from ((layer, method, kept) for method in inside)
            yield from ((layer, method, 1) for method in inside if method.name == RANDOM)


def _key(cell: Cell) -> str:
    """Tells a cell from the others of a model."""
    about = [f"{cut}{methods.version(cut.compressor)}" for cut in cell.cuts]
    about += [] if cell.side is None else [f"{cell.side} x {cell.side}"]
    return f"{cell.method} ({' '.join(about)})" if about else cell.method


def _cell(config: Any, name: str, schedule: Schedule) -> Cell:
    """With counts in its cuts."""
    cell = Cell.of(config, name, schedule)
    return dataclasses.replace(cell, cuts=resolve(cell.cuts, config.tokens_per_image).cuts)


def _at(config: Any, method: Method, keep: int, place: int | None = None) -> Cell:
    """Raises ValueError where the model cannot be cut like that."""
    depth, visual = config.text.num_layers, config.tokens_per_image
    return _cell(config, method.name, method.schedule(keep, num_layers=depth, num_visual=visual, place=place))


def _largest(config: Any, method: Method, most: int, length: int) -> int:
    """The largest budget that costs no more FLOPs than `most`; a smaller one too is only ever too small to be."""
    low, high = 1, config.tokens_per_image
    while high - low > 1:
        middle = (low + high) // 2
        try:
            fits = prefill_flops(config, length, _at(config, method, middle).cuts) <= most
        except ValueError:
            fits = True
        low, high = (middle, high) if fits else (low, middle)
    return low


def _budget(visual: int, keep: float | int) -> int:
    try:
        kept = plan(visual, keep).kept
    except (TypeError, ValueError) as error:
        raise CommandError(f"keep={keep}: {error}") from error
    if kept == visual:
        raise CommandError(f"keep={keep} keeps all {visual} visual tokens; there is nothing to compare")
    return kept
