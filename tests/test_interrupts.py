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


def test_ends_with_its_status_where_it_falls_into_code_from_a_text(tmp_path):
    """As dataclasses run theirs: after `python -m`, Python would end itself by a signal, whatever the program says."""
    body = 'lambda flags: exec("raise KeyboardInterrupt")'
    (tmp_path / "program.py").write_text(f"from models import cli\nraise SystemExit(cli.run({body}, cli.Parser(), []))")
    argv, environment = [sys.executable, "-m", "program"], os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stderr.count("\n")) == (130, 2)


def test_says_one_line_while_a_command_is_imported():
    argv = [sys.executable, "-m", "models.convert", "--help"]
    process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while b"libjax" not in (maps := Path(f"/proc/{process.pid}/maps").read_bytes()) and process.poll() is None:
        time.sleep(0.001)  # an exception in this moment, in which C code imports, crashes Python or is forgotten
    assert b"libjax" in maps
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "\ninterrupted before it began\n")


COMMANDS = sorted(
    path for folder in ("models", "experiments", "experiments/studies") for path in ROOT.glob(f"{folder}/*.py")
)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_nothing_else_asks_for_that(path):
    """As its first statement, and not where it is imported."""
    text = path.read_text()
    asks = 'from models import interrupts\n\nif __name__ == "__main__":\n    interrupts.end_at_once_while_importing()\n'
    assert (asks in text) == ("sys.exit(main())" in text)
    assert asks not in text or text.split("import annotations\n\n")[1].startswith(asks)


def test_importing_models_installs_nothing():
    code = "import sys, signal; sys.argv = ['-m']; import models; print(signal.getsignal(signal.SIGINT).__name__)"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "default_int_handler\n"


TWICE = """
import signal
from models import interrupts

interrupts.end_at_once_while_importing()
try:
    with interrupts.redeliver("last word\\n"):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            {during}
except KeyboardInterrupt:
    print("last word", file=__import__("sys").stderr)
    signal.raise_signal(signal.SIGINT)
    raise SystemExit(130)
"""


@pytest.mark.parametrize("during", ["signal.raise_signal(signal.SIGINT)", "pass"])
def test_a_second_one_is_quiet_while_cleaning_up_and_afterwards(during):
    argv = [sys.executable, "-c", TWICE.format(during=during)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "last word\n")
