"""Checked reading of the fields of configs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from models.errors import ConfigError

MAX_LAYERS = 256  # of a tower or decoder; Llama 3.1 405B has 126
_SHOWN = 60  # characters of a value in a message


class Fields:
    """Reads the fields of one part of a config, each of one type and within a range.

    Problems are collected, with the least allowed value in place of a wrong one; `check` raises all of them.

    Args:
      source: transformers' config, or a mapping.
      where: stands before each name in messages.
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

    def one_of(self, name: str, options: Collection[str]) -> str:
        """One of some words."""
        value = self.get(name)
        if isinstance(value, str) and value in options:
            return value
        self.wrong(name, value, f"supported are {', '.join(sorted(options))}")
        return next(iter(options))

    def check(self) -> None:
        """Raise ConfigError with all problems, if there are any."""
        if self.problems:
            raise ConfigError(*self.problems)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def special_tokens(
    hf: Any, generation: Mapping[str, Any], vocabulary: int, read: Fields
) -> tuple[tuple[int, ...], int]:
    """Ids that end a row, and the one that pads it; problems are noted in `read`.

    Args:
      hf: transformers' config.
      generation: what `generation_config.json` holds, which takes precedence.
      vocabulary: ids must be below it.
      read: of the same config.
    """
    ends, pads = (_special_token(hf, name, generation) for name in ("eos_token_id", "pad_token_id"))
    eos_ids = () if ends is None else ends.wholes("eos_token_id", 0, vocabulary - 1)
    pad = (*eos_ids, 0)[0] if pads is None else pads.whole("pad_token_id", 0, vocabulary - 1)
    for fields in (ends, pads):
        read.problems += fields.problems if fields is not None else []
    return eos_ids, pad


def _special_token(hf: Any, name: str, generation: Mapping[str, Any]) -> Fields | None:
    """The first place that has a token id: generation_config.json, the outer config, or the decoder's."""
    places = (Fields(generation, "generation_config.json: "), Fields(hf), Fields(hf.text_config, "text_config."))
    return next((fields for fields in places if fields.get(name) is not None), None)
