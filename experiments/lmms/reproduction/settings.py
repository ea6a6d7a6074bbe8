"""What a reproduction is told to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.evaluation import settings as evaluation
from experiments.evaluation.settings import Asking
from experiments.lmms.model_args import INFORMATION
from experiments.metrics.summary import BASELINE
from models.engine.plan import TOKENCARVE_LAYER


@dataclasses.dataclass(frozen=True)
class Column:
    """TokenCarve at one budget, by one route to its information score.

    Attributes:
      keep: as on the command line.
      information: a name of `experiments.lmms.model_args.INFORMATION`.
    """

    keep: float | int
    information: str

    @property
    def name(self) -> str:
        """Its schedule as `experiments.core.schedules` reads it, which is its name in all records.

        >>> Column(128, "svd").name
        'tokencarve-svd@2=128'
        """
        return f"{INFORMATION[self.information]}@{TOKENCARVE_LAYER}={self.keep}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(evaluation.Settings):
    """One reproduction.

    Attributes:
      sets: names, see `experiments.lmms.reproduction.sets.named`.
      include: folders with tasks of one's own.
      columns: what is compared with all tokens.
      asking: how questions are put.
      limit: the first so many questions of each set alone; None means all.
    """

    sets: tuple[str, ...]
    include: tuple[Path, ...]
    columns: tuple[Column, ...]
    asking: Asking
    limit: int | None

    @property
    def names(self) -> list[str]:
        """Of all methods, vanilla first."""
        return [BASELINE, *(column.name for column in self.columns)]
