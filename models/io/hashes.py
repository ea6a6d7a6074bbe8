"""Whether a folder's files are those that were written: hashes that a conversion or the hub recorded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from models.errors import CheckpointError
from models.io.untrusted import file_problem

SUMS = "SHA256SUMS"
"""As `sha256sum` writes it, so that `sha256sum --check SHA256SUMS` reads it too."""


def write_sums(folder: Path) -> None:
    """Record every file below a folder in `folder/SHA256SUMS`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{of_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in _shown(paths)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def sha256(paths: Sequence[Path]) -> dict[str, str]:
    """The hash of each file, by name."""
    return {path.name: of_file(path) for path in _shown(paths)}


def verify(folder: Path) -> int:
    """Compare a folder's files with what was recorded of them.

    Args:
      folder: one that `python -m models.convert` made, or a snapshot in the hub's cache, whose files are links to names
        that are their hashes.

    Returns:
      How many files were compared.

    Raises:
      CheckpointError: with every file that is missing or differs, or because nothing was recorded.
    """
    if (folder / SUMS).is_file():
        recorded = _recorded(folder)
        weights = {path.relative_to(folder).as_posix() for path in folder.glob("weights/**/*") if path.is_file()}
        problems = [f"{name} is not in {SUMS}" for name in sorted(weights - recorded.keys())]
    else:
        links = {path.name: path.resolve().name for path in sorted(folder.iterdir()) if path.is_symlink()}
        recorded = {name: blob for name, blob in links.items() if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob)}
        problems = []
    if not recorded:
        raise CheckpointError(
            folder, [f"has no recorded hashes to verify: neither {SUMS}, which models.convert writes, nor the hub's"]
        )
    for path in _shown([folder / name for name in recorded]):
        name = path.relative_to(folder).as_posix()
        if problem := file_problem(path):
            problems.append(f"{name} {problem}")
        elif recorded[name] != (of_file(path) if len(recorded[name]) == 64 else _git_blob(path)):
            problems.append(f"{name} is not what was recorded: its hash differs")
    if problems:
        raise CheckpointError(folder, problems)
    return len(recorded)


def _recorded(folder: Path) -> dict[str, str]:
    found = {}
    try:
        for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
            digest, name = line.split("  ", 1)
            if not re.fullmatch("[0-9a-f]{64}", digest) or Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"unexpected line {line[:80]!r}")
            found[name] = digest
    except (OSError, ValueError) as error:
        raise CheckpointError(folder, [f"{SUMS} cannot be read ({error})"]) from error
    return found


def _shown(paths: Sequence[Path]) -> Iterator[Path]:
    return iter(tqdm(paths, desc="Hashing files", unit=" files", disable=None))


def of_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_blob(path: Path) -> str:
    """What Git calls a file, and so the hub one that is not in Git LFS."""
    total = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    total.update(path.read_bytes())
    return total.hexdigest()
