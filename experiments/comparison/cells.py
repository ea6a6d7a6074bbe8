"""What is compared: every method at every budget, at an equal count of tokens and at an equal amount of compute.

A decoder layer that has not been cut yet sees all N tokens, so the same K costs more inside the decoder than before it.
At equal COUNT a method leaves K tokens where it is meant to work. At equal COMPUTE it leaves as many as cost, in
floating-point operations of the whole prefill, no more than TokenCarve at K in layer 2; for a cut before the decoder
those are the same as the layer-averaged number of tokens, unless the tower too has less to do.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from experiments.core import methods, schedules
from experiments.metrics.costs import prefill_flops
from experiments.metrics.summary import BASELINE
from models.engine.plan import TOWER, Carve, Schedule, parse, resolve, tokens_by_layer
from models.errors import CommandError
from tokencarve_jax import plan
from tokencarve_jax.methods.tome import block_counts

REFERENCE = "tokencarve"
DOWNSAMPLED = "downsampled"  # no method: the image at a lower resolution, enlarged again
COUNT, COMPUTE, GIVEN = "count", "compute", "given"


@dataclasses.dataclass(frozen=True)
class Cell:
    """Something to measure. Hashable.

    Attributes:
      method: by name.
      cuts: with counts.
      side: of the raster of patches that an image has the resolution of; None leaves it as it is.
      tokens: visual tokens in the last layer.
      average: visual tokens, mean over the decoder's layers.
      flops: of the prefill of one question, at least.
    """

    method: str
    cuts: Schedule
    side: int | None
    tokens: int
    average: float
    flops: int

    @property
    def key(self) -> str:
        """Tells it from the others of a model."""
        about = [f"{cut}{methods.version(cut.compressor)}" for cut in self.cuts]
        about += [] if self.side is None else [f"{self.side} x {self.side}"]
        return f"{self.method} ({' '.join(about)})" if about else self.method


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
      budget: visual tokens that were asked for; None for a schedule of the user's own.
      basis: "count", "compute", or "given" for that.
      method: by name.
      key: of its cell; None where there is none.
      why_not: what stands in the way then.
    """

    budget: int | None
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
    """Every published method and control; of TokenCarve's variants the exact one and the calibrated one alone."""
    names = [name for name in methods.choices() if not name.startswith(f"{REFERENCE}-")]
    return [*names, f"{REFERENCE}-svd", f"{REFERENCE}-calibrated", *methods.OFFICIAL, DOWNSAMPLED]


def grid(
    config: Any,
    names: Sequence[str],
    keeps: Sequence[float | int],
    *,
    length: int,
    given: Sequence[Sequence[str]] = (),
) -> Grid:
    """All cells for a model.

    Args:
      config: of a model that sees an image as one square of patches.
      names: of the methods; vanilla and TokenCarve are compared in any case.
      keeps: budgets.
      length: of a sequence, visual tokens included.
      given: schedules of the user's own, as the texts of their cuts.

    Returns:
      The cells and the lines.

    Raises:
      CommandError: no such method, a budget that leaves nothing out, or a schedule that cannot be.
    """
    model, visual = _Model(config, length), config.tokens_per_image
    budgets = list(dict.fromkeys(_budget(visual, keep) for keep in keeps))
    wanted = [name for name in dict.fromkeys([REFERENCE, *names]) if name != DOWNSAMPLED]
    depth, taken = config.text.num_layers, (BASELINE, DOWNSAMPLED)
    compared = methods.named(wanted, num_layers=depth, num_visual=visual, taken=taken)
    vanilla = model.cell(BASELINE, None)
    cells, lines = {vanilla.key: vanilla}, list[Line]()

    def add(budget: int | None, basis: str, cell: Cell) -> None:
        cells.setdefault(cell.key, cell)
        lines.append(Line(budget, basis, cell.method, cell.key))

    for budget in budgets:
        most = model.cell(REFERENCE, compared[0].cuts(budget)).flops
        for method, basis in itertools.product(compared, (COUNT, COMPUTE)):
            try:
                kept = budget if basis == COUNT else model.largest(method, most)
                add(budget, basis, model.cell(method.name, method.cuts(kept)))
            except ValueError as error:
                lines.append(Line(budget, basis, method.name, None, str(error)))
    for budget in budgets if DOWNSAMPLED in names else ():  # at equal count alone: it saves nothing
        side = max(1, round((budget * config.vision.num_patches / visual) ** 0.5))
        add(budget, COUNT, dataclasses.replace(vanilla, method=DOWNSAMPLED, side=side))
    for texts in given:
        with methods.said(f"schedule {' '.join(texts)}"):
            add(None, GIVEN, model.cell(" ".join(texts), schedules.read(texts)))
    return Grid(MappingProxyType(cells), tuple(lines))


class _Model:
    """What schedules come to in a model."""

    def __init__(self, config: Any, length: int):
        self._config, self._length = config, length

    def cell(self, name: str, carve: Carve) -> Cell:
        """Raises ValueError where the model cannot be cut like that."""
        config, depth, visual = self._config, self._config.text.num_layers, self._config.tokens_per_image
        cuts = resolve(parse(carve, num_layers=depth), visual).cuts
        if any(cut.place == TOWER and cut.compressor.at == TOWER for cut in cuts):
            block_counts(config.vision.num_patches, int(cuts[0].keep), max(config.feature_layers))
        layers = tokens_by_layer(cuts, num_layers=depth, num_visual=visual)
        return Cell(name, cuts, None, layers[-1], sum(layers) / depth, prefill_flops(config, self._length, cuts))

    def largest(self, method: methods.Method, most: int) -> int:
        """The largest budget that costs no more FLOPs than `most`; a smaller one too is only ever too small to be."""
        low, high = 1, self._config.tokens_per_image
        while high - low > 1:
            middle = (low + high) // 2
            try:
                fits = self.cell(method.name, method.cuts(middle)).flops <= most
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
