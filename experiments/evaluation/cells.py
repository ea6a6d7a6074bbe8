"""What is asked of a model: cells, each a schedule of cuts under a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from experiments.core import methods
from experiments.core.methods import BASELINE, Method
from models.engine.model import VisionLanguageModel
from models.engine.plan import TOWER, Schedule, parse, resolve, tokens_by_layer
from tokencarve_jax import plan
from tokencarve_jax.methods.tome import block_counts


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way to ask. Hashable."""

    method: str  # its name in tables
    cuts: Schedule  # in the order in which they happen; none for vanilla
    tokens: int  # visual tokens in the last layer, of one image; of the first question where images have any number
    average: float  # visual tokens, mean over the decoder's layers
    side: int | None = None  # of the raster of patches that an image is brought to the resolution of

    @classmethod
    def of(cls, config: Any, method: str, schedule: Schedule, *, visual: int | None = None) -> Cell:
        """The cell of a schedule; TypeError or ValueError where a model of this config cannot be cut like that.

        With `visual` that is how many visual tokens there are before the first cut, of which a count may keep all.
        """
        depth = config.text.num_layers
        schedule = parse(schedule, num_layers=depth)
        counted = schedule if visual is None else capped(schedule, visual)
        visual = config.tokens_per_image if visual is None else visual
        cuts = resolve(counted, visual).cuts
        check_blocks(config, cuts)
        layers = tokens_by_layer(cuts, num_layers=depth, num_visual=visual)
        return cls(method, schedule, layers[-1], sum(layers) / depth)


def capped(cuts: Schedule, most: int) -> Schedule:
    """With counts of at most so many: where there are fewer tokens than a cut keeps, it keeps them all."""
    counts = (min(cut.keep, most) if isinstance(cut.keep, int) else cut.keep for cut in cuts)
    return tuple(dataclasses.replace(cut, keep=keep) for cut, keep in zip(cuts, counts, strict=True))


def check_blocks(config: Any, cuts: Schedule) -> None:
    """Raise ValueError where the tower's blocks cannot leave as few tokens as the first of these cuts, now counts."""
    if cuts and cuts[0].place == TOWER and cuts[0].compressor.at == TOWER:
        block_counts(config.vision.num_patches, int(cuts[0].keep), max(config.feature_layers))


class Comparison(Protocol):
    """What is compared, as an immutable value that can be pickled."""

    @property
    def square(self) -> bool:
        """Whether it is for models alone that see an image as one square of patches."""

    def cells(self, model: VisionLanguageModel, *, length: int, visual: int) -> Mapping[str, Cell]:
        """The cells by name; CommandError where the model cannot be cut like that.

        Args:
          model: the model.
          length: of the first question's prompt.
          visual: how many visual tokens that has, of a model whose images have any number.
        """


@dataclasses.dataclass(frozen=True)
class AtOneBudget:
    """Vanilla, methods at one count of visual tokens, and schedules."""

    methods: Sequence[tuple[Method, float | int]] = ()  # with what each leaves, a fraction or a count
    schedules: Sequence[tuple[str, Schedule]] = ()  # with their names
    square: bool = False  # see `Comparison`

    def cells(self, model: VisionLanguageModel, *, length: int, visual: int) -> Mapping[str, Cell]:
        """See `Comparison`; names are those of methods and schedules."""
        del length
        config, many = model.config, None if model.square else visual
        depth, visual = config.text.num_layers, config.tokens_per_image if many is None else many
        found = {BASELINE: Cell.of(config, BASELINE, (), visual=many)}
        for method, keep in self.methods:
            with methods.naming(f"keep={keep}"):
                if model.square:  # the same count for all images, however much of them is border
                    keep = plan(visual, keep).kept
                schedule = method.schedule(keep, num_layers=depth, num_visual=visual)
                found[method.name] = Cell.of(config, method.name, model.schedule(schedule), visual=many)
        for name, schedule in self.schedules:
            with methods.naming(f"schedule {name}"):
                found[name] = Cell.of(config, name, model.schedule(schedule), visual=many)
        return found
