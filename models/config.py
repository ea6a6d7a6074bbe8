"""What all families share of reading `config.json`: transformers' own config classes do it, errors are ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.layers.linear import ACTIVATIONS


class ConfigError(ValueError):
    """A checkpoint asks for something that this package does not build, or its config cannot be read.

    Attributes:
      problems: one or more; the message holds them all.
    """

    def __init__(self, *problems: str):
        self.problems = problems
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        super().__init__(count + "; ".join(problems))


def activation_problems(name: Any, where: str) -> list[str]:
    """What is wrong with the name of an activation, for the message."""
    return [] if name in ACTIVATIONS else [f"{where} is {name!r}; supported are {', '.join(sorted(ACTIVATIONS))}"]


def special_token(hf: Any, name: str, generation: Mapping[str, Any]) -> Any:
    """From generation_config.json, else the outer config, else the decoder's: published files have it on any."""
    found = (generation.get(name), getattr(hf, name, None), getattr(hf.text_config, name, None))
    return next((value for value in found if value is not None), None)


def read_hf_config(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """Read `folder/config.json`, and `generation_config.json` beside it where there is one.

    Args:
      folder: a local folder in Hugging Face format.

    Returns:
      transformers' config, and what the other file holds; it goes first for the tokens that end and pad a row.

    Raises:
      ConfigError: no readable `config.json`.
    """
    # Imported here: it takes a second that `--help` should not wait for.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} has no config.json; expected a checkpoint folder in Hugging Face format")
    try:
        hf = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as a model config: {reason}") from error
    return hf, _generation_config(Path(folder) / "generation_config.json")


def _generation_config(path: Path) -> dict[str, Any]:
    """What a folder's generation_config.json holds; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
