"""What an evaluation compares: registered methods, and the options of `tokencarve_jax.carve` registered as such."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from experiments.cli import CommandError
from experiments.summary import BASELINE
from models.engine.plan import Carve, TOKENCARVE_LAYER, parse, resolve
from models.schedule import is_per_image, register, tokencarve
from models.schedule import methods as registered

OPTIONS: dict[str, dict[str, Any]] = {
    "attention-only": {"attention_weight": 1.0},
    "information-only": {"attention_weight": 0.0},
    "no-merge": {"oversample": 1.0},
    "debias": {"debias": True},
    "norm": {"information": "norm"},  # the control: no decomposition
    "svd": {"information": "svd"},
}

for _name, _options in OPTIONS.items():
    register(f"tokencarve-{_name}")(functools.partial(tokencarve, **_options))
# The information score of the attention output, as the paper's text has it, in place of the hidden state.
register("tokencarve-attention-output", attention_output=True)(tokencarve)


def choices() -> list[str]:
    """Methods to compare; a budget for each image is none of its own where there is one image."""
    return [name for name in registered() if not is_per_image(name)]


def to_compare(llava: Any, keep: float | int, names: Sequence[str]) -> dict[str, Carve]:
    """Vanilla, and the methods of these names at the same count.

    Raises:
      CommandError: the model cannot be carved like that, or there is no such method.
    """
    if unknown := [name for name in names if name not in choices()]:
        raise CommandError(f"--methods: no method is named {unknown[0]!r}; there are {', '.join(choices())}")
    cuts: dict[str, Carve] = {name: ((TOKENCARVE_LAYER, name, keep),) for name in names}
    for cut in cuts.values():
        try:
            resolve(parse(cut, num_layers=llava.config.text.num_layers), llava.config.tokens_per_image)
        except ValueError as error:
            raise CommandError(f"--keep={keep}: {error}") from error
    return {BASELINE: None} | cuts
