"""What a benchmark is told to measure."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      preset: names the sizes of the model.
      keep: fraction or count of the visual tokens that are left.
      batch: prompts at a time; several are measured one after the other.
      prompt_tokens: of text.
      new_tokens: to decode.
      dtype: of weights and hidden states.
      against: "transformers", which is measured too, or None.
      repeats: rounds, after one to warm up.
      largest_batch: find out how many rows fit on a CPU too.
      out: folder for results.json.
    """

    preset: str
    keep: float | int
    batch: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    dtype: str
    against: str | None
    repeats: int
    largest_batch: bool
    out: Path
