"""What is asked of a model: cells, each a schedule of cuts under a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from experiments.core import methods
from experiments.core.methods import BASELINE, Method
from models.engine.model import VisionLanguageModel
from models.engine.plan import TOWER, Schedule, parse, resolve, tokens_by_layer
from tokencarve_jax import Compressor, plan
from tokencarve_jax.methods.tome import block_counts


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way to ask. Hashable.

    Attributes:
      method: its name in tables.
      cuts: in the order in which they happen; none for vanilla.
      tokens: visual tokens of one image in the last layer.
      average: visual tokens, mean over the decoder's layers.
      side: of the raster of patches that an image is brought to the resolution of; None leaves it as it is.
    """

    method: str
    cuts: Schedule
    tokens: int
    average: float
    side: int | None = None

    @classmethod
    def of(cls, config: Any, method: str, schedule: Schedule) -> Cell:
        """The cell of a schedule.

        Args:
          config: of the model.
          method: its name.
          schedule: its cuts.

        Raises:
          TypeError, ValueError: the model cannot be cut like that.
        """
        depth, visual = config.text.num_layers, config.tokens_per_image
        schedule = parse(schedule, num_layers=depth)
        cuts = resolve(schedule, visual).cuts
        if cuts and cuts[0].place == TOWER and cuts[0].compressor.at == TOWER:
            block_counts(config.vision.num_patches, int(cuts[0].keep), max(config.feature_layers))
        layers = tokens_by_layer(cuts, num_layers=depth, num_visual=visual)
        return cls(method, schedule, layers[-1], sum(layers) / depth)


class Comparison(Protocol):
    """What is compared, as an immutable value that can be pickled.

    Attributes:
      square: it is for models that see an image as one square of patches.
    """

    @property
    def square(self) -> bool:
        """See the class."""
        ...

    def cells(self, model: VisionLanguageModel, *, length: int) -> Mapping[str, Cell]:
        """The cells, by name.

        Args:
          model: that is asked.
          length: of a sequence, visual tokens included.

        Raises:
          CommandError: the model cannot be cut like that.
        """
        ...


@dataclasses.dataclass(frozen=True)
class AtOneBudget:
    """Vanilla, methods at one count of visual tokens, and schedules.

    Attributes:
      methods: as they were named, each with how many visual tokens it leaves, a fraction or a count.
      schedules: by their names.
      square: see `Comparison`.
    """

    methods: Sequence[tuple[Method, float | int]] = ()
    schedules: Sequence[tuple[str, Schedule]] = ()
    square: bool = False

    @property
    def compressors(self) -> list[Compressor]:
        """Of all methods and schedules."""
        own = [method.compressor for method, _ in self.methods if method.compressor]
        return own + [cut.compressor for _, schedule in self.schedules for cut in schedule]

    def cells(self, model: VisionLanguageModel, *, length: int) -> Mapping[str, Cell]:
        """See `Comparison`; names are those of methods and schedules."""
        del length
        config = model.config
        depth, visual = config.text.num_layers, config.tokens_per_image
        found = {BASELINE: Cell.of(config, BASELINE, ())}
        for method, keep in self.methods:
            with methods.naming(f"keep={keep}"):
                if model.square:  # the same count for all images, however much of them is border
                    keep = plan(visual, keep).kept
                schedule = method.schedule(keep, num_layers=depth, num_visual=visual)
                found[method.name] = Cell.of(config, method.name, schedule)
        for name, schedule in self.schedules:
            with methods.naming(f"schedule {name}"):
                found[name] = Cell.of(config, name, schedule)
        return found
