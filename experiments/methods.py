"""What an evaluation compares: registered compressors, each where it is meant to work, at one count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.cli import CommandError
from experiments.summary import BASELINE
from models.engine.plan import TOKENCARVE_LAYER, Carve, parse, resolve
from tokencarve_jax import COMPRESSORS, Compressor

NEEDS_MORE = ("relevance",)  # evidence of another model


def choices() -> list[str]:
    """Names of what can be compared."""
    return sorted(name for name, compressor in COMPRESSORS.items() if not set(compressor.required) & set(NEEDS_MORE))


def cut(compressor: Compressor, keep: float | int) -> Carve:
    """One cut, where the compressor is meant to work."""
    place = TOKENCARVE_LAYER if compressor.at == "decoder" else compressor.at
    return ((place, compressor, keep),)


def to_compare(llava: Any, keep: float | int, names: Sequence[str]) -> dict[str, Carve]:
    """Vanilla, and the methods of these names at the same count.

    Raises:
      CommandError: the model cannot be carved like that, or there is no such method.
    """
    if unknown := [name for name in names if name not in choices()]:
        raise CommandError(f"--methods: no method is named {unknown[0]!r}; there are {', '.join(choices())}")
    cuts = {name: cut(COMPRESSORS[name], keep) for name in names}
    for schedule in cuts.values():
        try:
            resolve(parse(schedule, num_layers=llava.config.text.num_layers), llava.config.tokens_per_image)
        except (TypeError, ValueError) as error:
            raise CommandError(f"--keep={keep}: {error}") from error
    return {BASELINE: None} | cuts
