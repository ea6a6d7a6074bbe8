"""What lmms-eval's `--model_args` tell the model."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.core import cli, preprocessing
from experiments.data.encoder import CONVERSATIONS
from experiments.evaluation.settings import Asking, Settings
from experiments.metrics.summary import BASELINE
from models.cli import DTYPES
from models.errors import CommandError

INFORMATION = {"default": "tokencarve", "svd": "tokencarve-svd", "norm": "tokencarve-norm"}
"""Routes to TokenCarve's information score, as rows of the registry."""
_IGNORED = ("device", "max_batch_size")  # what the harness passes to every model


@dataclasses.dataclass(frozen=True)
class ModelArgs:
    """The model of one run of the harness.

    Attributes:
      settings: model and method; its `out` is where journals go.
      asking: how questions are put.
      name: the method's name in records, "vanilla" without one.
    """

    settings: Settings
    asking: Asking
    name: str


def read(given: Mapping[str, Any]) -> ModelArgs:
    """Read what stands in `--model_args`, as the harness has split it, and in `--batch_size`.

    Args:
      given: `pretrained` (a folder or an id on the hub), `revision`, `dtype`, `batch_size`, `seed`; `keep` with
        `method` (and `information` for TokenCarve), or `schedule`, cuts as `experiments.core.schedules` reads them with
        spaces between them (in quotes where they have commas); without any of these nothing is carved;
        `image_aspect_ratio`, `border`, `conversation`, `max_new_tokens` (where a task has none);
        `journal`, a folder for answers (default: results/lmms-eval), and `restart`.

    Raises:
      CommandError: an argument that there is not, or a value that is none for it.
    """
    left = {name: str(value).strip("\"'") for name, value in given.items() if name not in _IGNORED}

    def take(name: str, default: Any, of: Callable[[str], Any] = str) -> Any:
        if name not in left:
            return default
        text = left.pop(name)
        try:
            return of(text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise CommandError(f"model_args: {name}={text}: {error}") from error

    model, keep = take("pretrained", str(cli.SHIPPED)), take("keep", None, cli.keep)
    schedule, method = take("schedule", None, str.split), take("method", None)
    information = take("information", None, _one_of(INFORMATION))
    if schedule and (keep or method or information):
        raise CommandError("model_args: schedule says all; leave out keep, method and information")
    if (method or information) and keep is None:
        raise CommandError("model_args: a method needs keep, such as keep=128")
    if information and method not in (None, "tokencarve"):
        raise CommandError(f"model_args: information is for tokencarve, not for {method}")
    methods = (
        () if keep is None else (INFORMATION[information or "default"] if method is None or information else method,)
    )
    asking = Asking(
        image_aspect_ratio=take("image_aspect_ratio", "pad", _one_of(preprocessing.ASPECT_RATIOS)),
        border=take("border", "keep", _one_of(preprocessing.BORDERS)),
        conversation=take("conversation", "vicuna_v1", _one_of(CONVERSATIONS)),
        max_new_tokens=take("max_new_tokens", None, cli.positive),
    )
    settings = Settings(
        model=model,
        keep=1.0 if keep is None else keep,
        methods=methods,
        schedules=(tuple(schedule),) if schedule else (),
        out=take("journal", Path("results") / "lmms-eval", Path),
        scenes=0,
        batch_size=take("batch_size", 1, cli.positive),
        seed=take("seed", 0, cli.seed),
        dtype=take("dtype", DTYPES[0], _one_of(DTYPES)),
        revision=take("revision", None),
        restart=take("restart", False, _truth),
    )
    if left:
        raise CommandError(f"model_args: there is no {', '.join(left)}")
    return ModelArgs(settings, asking, (*methods, *([" ".join(schedule)] if schedule else []), BASELINE)[0])


def _one_of(choices: Any) -> Callable[[str], str]:
    def of(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return text

    return of


def _truth(text: str) -> bool:
    return _one_of(("True", "False", "true", "false", "1", "0"))(text) in ("True", "true", "1")
