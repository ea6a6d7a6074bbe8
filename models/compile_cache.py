"""JAX's cache of compiled programs, in the user's cache folder; only commands use it, through `models.cli.run`.

A cache that the user has chosen (JAX_COMPILATION_CACHE_DIR) or switched off (JAX_ENABLE_COMPILATION_CACHE) stays so.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import stat
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax

MOST_BYTES = 1 << 30
_BROKEN = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '(.+?)'")
LEAST_SECONDS = 0.0  # small programs too: reading one takes a millisecond, compiling it thirty


def keep_on_disk() -> None:
    """Let JAX keep what it compiles from now on; without a usable folder, change nothing, in silence."""
    config = jax.config.values
    if config["jax_compilation_cache_dir"] or not config["jax_enable_compilation_cache"]:
        return
    with contextlib.suppress(OSError, RuntimeError):  # a home that is read-only, or none
        folder = _own(cache_folder())
        shrink(folder.parent, MOST_BYTES)
        with tempfile.TemporaryFile(dir=folder):  # a full or read-only disk shows here, and not as a warning each time
            pass
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        _drop_broken(folder)


def _drop_broken(folder: Path) -> None:
    """Remove entries that JAX warns it could not write or read, instead of showing the warning.

    A full disk or a killed process leaves half an entry, which JAX would warn of at every start and never replace.
    The warning names the function and not the file: all entries of that function go.
    """
    show = warnings.showwarning

    def drop(message: Warning | str, *where: Any, **more: Any) -> None:
        if found := _BROKEN.match(str(message)):
            for path in folder.glob(f"{glob.escape(found[1])}-*-cache"):
                path.unlink(missing_ok=True)
        else:
            show(message, *where, **more)

    warnings.showwarning = drop
    warnings.filterwarnings("always", _BROKEN.pattern)  # also where warnings are ignored, or shown once


def cache_folder() -> Path:
    """Below $XDG_CACHE_HOME or ~/.cache, one for each kind of processor, as homes are shared between machines."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"  # the specification ignores relative ones
    return root / "tokencarve_jax" / "compiled" / f"{zlib.crc32(_processor().encode()):08x}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join(sorted(named) or [platform.machine(), platform.processor()])


def _own(folder: Path) -> Path:
    """Make the folder, or check that nobody else can write there: its content is run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(f"{folder} can be written by others")
    return folder


def shrink(folder: Path, most: int) -> None:
    """Remove the oldest files until no more than `most` bytes are left; other processes may do the same meanwhile.

    JAX's own limit breaks if a process is killed while writing: an entry without its time stops all later writes.
    """
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            about = path.stat()
            if stat.S_ISREG(about.st_mode):
                found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
