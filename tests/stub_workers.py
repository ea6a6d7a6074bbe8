"""For tests of workers: some that work and some that do not, in a module that other processes can import."""

import os
import signal
from pathlib import Path

from models.errors import CommandError


class Counting:
    """A worker that says who it is, and can be told to go wrong."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def identity(self):
        return {"code": 1}

    def double(self, number):
        return 2 * number, os.getpid()

    def die_once(self, number):
        """Ends the process at the first try."""
        mark = self.folder / str(number)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.double(number)

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def refuse(self):
        raise CommandError("no such\nthing")

    def break_down(self):
        raise ZeroDivisionError("by\nnought")


class Making:
    """Makes workers."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        return Counting(self.folder)


class Failing(Making):
    def __call__(self):
        raise CommandError("no such model")


class Differing(Making):
    def __call__(self):
        worker = Counting(self.folder)
        worker.identity = lambda: {"code": os.getpid()}
        return worker
