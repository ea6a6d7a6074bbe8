"""The errors that a user can put right; a command prints each of them as one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_LISTED = 10  # problems that a message spells out


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


class CommandError(Exception):
    """Something that the user can put right. The message says what, on one line."""


class ConfigError(ValueError):
    """A checkpoint asks for something that this package does not build, or its config cannot be read.

    Attributes:
      problems: one or more; the message holds them all.
    """

    def __init__(self, *problems: str):
        self.problems = problems
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        super().__init__(count + "; ".join(problems))


class CheckpointError(ValueError):
    """Everything that is wrong with one checkpoint, on one line.

    Attributes:
      problems: all of them, also those that the message leaves out.
    """

    def __init__(self, where: Path | str, problems: Sequence[str]):
        self.problems = tuple(one_line(problem) for problem in problems)
        listed = "; ".join(self.problems[:_LISTED])
        count = f"{len(self.problems)} problems: " if len(self.problems) > 1 else ""
        rest = f"; and {len(self.problems) - _LISTED} more" if len(self.problems) > _LISTED else ""
        super().__init__(f"{where}: {count}{listed}{rest}")
