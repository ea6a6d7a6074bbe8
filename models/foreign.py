"""Guards around what other people wrote: files that are none, and what other libraries parse."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def file_problem(path: Path) -> str | None:
    """Why a file cannot be opened for reading, found without opening it: a pipe would wait for a writer.

    Args:
      path: of the file.

    Returns:
      What ends the sentence "PATH ...", or None where nothing is wrong.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "is a link to nothing" if path.is_symlink() else "does not exist (no such file)"
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a null byte
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if not stat.S_ISREG(mode):
        return f"is a {_KINDS.get(stat.S_IFMT(mode), 'device')}, not a file"
    return None if os.access(path, os.R_OK) else "cannot be read by this user (permission denied)"


def reason(error: BaseException) -> str:
    """An exception of another library as part of a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def parsing(what: object, raising: type[Exception]) -> Iterator[None]:
    """Whatever the body's parser raises for bad input becomes one line that names the input.

    Its warnings and logs are not shown. The body calls another library on what a user gave, and does nothing else:
    parsers raise anything at all for damaged input, so that a list of exceptions is never complete.

    Args:
      what: the file or folder, for the message.
      raising: made from the message. If the body raises one itself, it stays as it is.
    """
    level = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except raising:
        raise
    except Exception as error:
        raise raising(f"{what} cannot be read ({reason(error)})") from error
    finally:
        logging.disable(level)
