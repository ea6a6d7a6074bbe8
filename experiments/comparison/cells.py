"""What is compared: every method at every budget, at an equal count of tokens and at an equal amount of compute.

A decoder layer that has not been cut yet sees all N tokens, so the same K costs more inside the decoder than before it.
At equal COUNT a method leaves K tokens where it is meant to work. At equal COMPUTE it leaves as many as cost, in
floating-point operations of the whole prefill, no more than TokenCarve at K in layer 2; for a cut before the decoder
those are the same as the layer-averaged number of tokens, unless the tower too has less to do.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from experiments import methods
from experiments.benchmark.floors import prefill_flops
from experiments.cli import CommandError
from experiments.summary import BASELINE
from models.engine.plan import TOWER, Schedule, parse, resolve, tokens_by_layer
from tokencarve_jax import plan
from tokencarve_jax.methods.tome import block_counts

REFERENCE = "tokencarve"
DOWNSAMPLED = "downsampled"  # no method: the image at a lower resolution, enlarged again
COUNT, COMPUTE = "count", "compute"
BASES = (COUNT, COMPUTE)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Something to measure. Hashable.

    Attributes:
      method: by name.
      version: of a method of the user's own.
      cuts: with counts.
      side: of the raster of patches that an image has the resolution of; None leaves it as it is.
      tokens: visual tokens in the last layer.
      average: visual tokens, mean over the decoder's layers.
      flops: of the prefill of one question, at least.
    """

    method: str
    version: str
    cuts: Schedule
    side: int | None
    tokens: int
    average: float
    flops: int

    @property
    def key(self) -> str:
        """Tells it from the others of a model."""
        about = [self.version] if self.version else []
        about += [methods.readable(cut) for cut in self.cuts]
        about += [] if self.side is None else [f"{self.side} x {self.side}"]
        return f"{self.method} ({' '.join(about)})" if about else self.method


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
      budget: visual tokens that were asked for.
      basis: "count" or "compute".
      method: by name.
      key: of its cell; None where there is none.
      why_not: what stands in the way then.
    """

    budget: int
    basis: str
    method: str
    key: str | None
    why_not: str = ""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Everything to measure.

    Attributes:
      cells: by key, vanilla first; methods that come to the same share one.
      lines: of the tables.
    """

    cells: Mapping[str, Cell]
    lines: tuple[Line, ...]


def default_methods() -> list[str]:
    """Every published method and control, and TokenCarve as released and calibrated; no other variants of it."""
    variants = [name for name in methods.choices() if name.startswith(f"{REFERENCE}-")]
    shown = [name for name in methods.choices() if name not in variants]
    return [
        REFERENCE,
        f"{REFERENCE}-svd",
        *(name for name in shown if name != REFERENCE),
        *methods.SCHEDULES,
        DOWNSAMPLED,
    ]


def grid(config: Any, names: Sequence[str], keeps: Sequence[float | int], *, length: int) -> Grid:
    """All cells for a model.

    Args:
      config: of a model that sees an image as one square of patches.
      names: of the methods; vanilla and TokenCarve are compared in any case.
      keeps: budgets.
      length: of a sequence, visual tokens included.

    Returns:
      The cells and the lines.

    Raises:
      CommandError: no such method, or a budget that leaves nothing out.
    """
    visual, depth = config.tokens_per_image, config.text.num_layers

    def cell(method: methods.Method, kept: int) -> Cell:
        cuts = resolve(parse(method.cuts(kept), num_layers=depth), visual).cuts
        if any(cut.place == TOWER and cut.compressor.at == TOWER for cut in cuts):  # raises where it cannot be
            block_counts(config.vision.num_patches, int(cuts[0].keep), max(config.feature_layers))
        layers = tokens_by_layer(cuts, num_layers=depth, num_visual=visual)
        flops = prefill_flops(config, length, cuts)
        return Cell(method.name, method.version, cuts, None, layers[-1], sum(layers) / depth, flops)

    def find(method: methods.Method, budget: int, basis: str) -> Cell:
        if basis == COUNT:
            return cell(method, budget)
        most = cell(reference, budget).flops
        return cell(method, _largest(lambda kept: cell(method, kept).flops <= most, visual))

    named = functools.partial(methods.method, num_layers=depth, num_visual=visual)
    reference = named(REFERENCE)
    budgets = list(dict.fromkeys(_budget(visual, keep) for keep in keeps))
    compared = [named(name) for name in dict.fromkeys([REFERENCE, *names]) if name != DOWNSAMPLED]
    if len({BASELINE, DOWNSAMPLED, *(method.name for method in compared)}) < len(compared) + 2:
        raise CommandError(f"of the methods {', '.join(names)} two have one name, or one is called {BASELINE!r}")
    vanilla = Cell(BASELINE, "", (), None, visual, visual, prefill_flops(config, length))
    cells, lines = {vanilla.key: vanilla}, list[Line]()
    for budget, method, basis in itertools.product(budgets, compared, BASES):
        try:
            found = find(method, budget, basis)
        except ValueError as error:
            lines.append(Line(budget, basis, method.name, None, str(error)))
        else:
            cells.setdefault(found.key, found)
            lines.append(Line(budget, basis, method.name, found.key))
    for budget in budgets if DOWNSAMPLED in names else ():  # at equal count alone: it saves nothing
        side = max(1, round((budget * config.vision.num_patches / visual) ** 0.5))
        low = dataclasses.replace(vanilla, method=DOWNSAMPLED, side=side)
        cells[low.key] = low
        lines.append(Line(budget, COUNT, DOWNSAMPLED, low.key))
    return Grid(MappingProxyType(cells), tuple(lines))


def _budget(visual: int, keep: float | int) -> int:
    try:
        kept = plan(visual, keep).kept
    except (TypeError, ValueError) as error:
        raise CommandError(f"keep={keep}: {error}") from error
    if kept == visual:
        raise CommandError(f"keep={keep} keeps all {visual} visual tokens; there is nothing to compare")
    return kept


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number of tokens that fits, if any; fewer always fit too, unless they are too few for the method."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        try:
            low, high = (middle, high) if fits(middle) else (low, middle)
        except ValueError:
            low = middle
    return max(low, 1)
