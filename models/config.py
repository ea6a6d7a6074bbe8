"""What all families share of reading `config.json`: transformers' own config classes do it, errors are ours."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from models.errors import ConfigError
from models.io.untrusted import file_problem, parsing
from models.nn.linear import ACTIVATIONS

MAX_LAYERS = 256  # of a tower or decoder; Llama 3.1 405B has 126
_SHOWN = 60  # characters of a value in a message


class Fields:
    """Reads the fields of one part of a config, each of one type and within a range.

    What is wrong is collected, and the least value that is allowed stands in its place, so that reading goes on;
    `check` then raises all of it.

    Args:
      source: transformers' config, or a mapping.
      where: stands before each name in messages.

    Attributes:
      problems: found so far.
    """

    def __init__(self, source: Any, where: str = ""):
        self._source, self._where = source, where
        self.problems: list[str] = []

    def get(self, name: str) -> Any:
        """A field as it is; None where there is none."""
        if isinstance(self._source, Mapping):
            return self._source.get(name)
        return getattr(self._source, name, None)

    def wrong(self, name: str, value: Any, expected: str) -> None:
        """Note a problem."""
        text = repr(value)
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        self.problems.append(f"{self._where}{name} is {shown}; {expected}")

    def whole(self, name: str, least: int, most: int) -> int:
        """A whole number in [least, most]."""
        value = self.get(name)
        if _is_whole(value, least, most):
            return value
        self.wrong(name, value, f"expected a whole number from {least} to {most}")
        return least

    def whole_or_none(self, name: str, least: int, most: int) -> int | None:
        """The same, or nothing."""
        return None if self.get(name) is None else self.whole(name, least, most)

    def wholes(self, name: str, least: int, most: int) -> tuple[int, ...]:
        """One or several of them: a list that is not empty, or a number by itself."""
        value = self.get(name)
        values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if values and all(_is_whole(one, least, most) for one in values):
            return values
        self.wrong(name, value, f"expected whole numbers from {least} to {most}")
        return (least,)

    def number(self, name: str, least: float, most: float) -> float:
        """A finite number in [least, most]."""
        value = self.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most:
            return float(value)
        self.wrong(name, value, f"expected a number from {least:g} to {most:g}")
        return float(least)

    def flag(self, name: str) -> bool:
        """True or false; false where there is no such field."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            self.wrong(name, value, "expected true or false")
        return value is True

    def decode_config(self, name: str, options: Collection[str]) -> str:
        """One of some words."""
        value = self.get(name)
        if isinstance(value, str) and value in options:
            return value
        self.wrong(name, value, f"supported are {', '.join(sorted(options))}")
        return next(iter(options))

    def activation(self, name: str) -> str:
        """The name of an activation."""
        return self.decode_config(name, ACTIVATIONS)

    def check(self) -> None:
        """Raise what was found.

        Raises:
          ConfigError: with all problems, where there are any.
        """
        if self.problems:
            raise ConfigError(*self.problems)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def special_token(hf: Any, name: str, generation: Mapping[str, Any]) -> Fields | None:
    """Where a token id is found: in generation_config.json, else the outer config, else the decoder's."""
    places = (Fields(generation, "generation_config.json: "), Fields(hf), Fields(hf.text_config, "text_config."))
    return next((fields for fields in places if fields.get(name) is not None), None)


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
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    if not os.path.lexists(path):
        raise ConfigError(f"{folder} has no config.json; expected a checkpoint folder in Hugging Face format")
    if problem := file_problem(path):
        raise ConfigError(f"{path} {problem}")
    with parsing(path, ConfigError):
        hf = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return hf, _generation_config(Path(folder) / "generation_config.json")


def _generation_config(path: Path) -> dict[str, Any]:
    """What a folder's generation_config.json holds; nothing where there is none."""
    if not os.path.lexists(path):
        return {}
    if problem := file_problem(path):
        raise ConfigError(f"{path} {problem}")
    with parsing(path, ConfigError):
        return dict(json.loads(path.read_text(encoding="utf-8")))
