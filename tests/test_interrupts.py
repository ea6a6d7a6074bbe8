"""Ctrl-C at awkward moments: in a callback of the garbage collector, and before a command has begun."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models import cli, interrupts

ROOT = Path(__file__).parents[1]


def test_is_obeyed_where_it_falls_into_the_garbage_collector(capsys):
    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGINT)

    def body(flags):
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(10)

    assert cli.run(body, cli.Parser(prog="a command"), [], interrupted="stopped") == 130
    assert capsys.readouterr().err == "\na command: stopped\n"


def test_other_exceptions_there_are_still_printed(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    class Bad:
        def __del__(self):
            raise ValueError("in a finalizer")

    assert cli.run(lambda flags: Bad() and None, cli.Parser(prog="a command"), []) == 0
    assert [item.exc_type for item in seen] == [ValueError]


def test_waits_where_half_done_would_be_worse_and_a_second_one_does_not():
    done = []

    def interrupted(times):
        with interrupts.defer():
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            done.append(times)

    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            interrupted(times)
    assert done == [1]
    interrupted(0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("module", ["experiments.eval", "models.convert"])
def test_says_one_line_while_a_command_is_imported(module):
    process = subprocess.Popen([sys.executable, "-m", module, "--help"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while b"libjax" not in (maps := Path(f"/proc/{process.pid}/maps").read_bytes()) and process.poll() is None:
        time.sleep(0.001)  # an exception in this moment, in which C code imports, crashes Python or is forgotten
    assert b"libjax" in maps
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "\ninterrupted before it began\n")
