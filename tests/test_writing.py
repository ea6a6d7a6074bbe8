"""One process at a time writes to a place, and what appears is whole."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models import convert
from models.io.writing import InUseError, only_writer, own_folder, replacing
from tests.checkpoints import save_small

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from models.io.writing import own_folder
with own_folder(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_who_is_there_and_death_ends_the_right(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout.readline() == b"in\n"
            said = rf"{tmp_path} is being written by process {process.pid} on \S+ since \d{{4}}-.*; wait"
            with pytest.raises(InUseError, match=said), own_folder(tmp_path):
                pass
        finally:
            process.send_signal(signal.SIGKILL)
    (tmp_path / f".results.{'0' * 32}.part.json").touch()  # as of a process that was killed
    with own_folder(tmp_path):
        assert json.loads((tmp_path / ".writer.json").read_text())["process"] == os.getpid()
        assert not list(tmp_path.glob("*.part*"))
        (tmp_path / "kept").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_with_nothing_in_it_goes_again(tmp_path):
    with own_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a" / "b").exists()


def test_the_right_can_be_had_again(tmp_path):
    for _ in range(3):
        with only_writer(tmp_path / "x", tmp_path / "x.lock"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with replacing(path) as part:
            part.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with replacing(path) as part, replacing(path) as other:
        assert part != other
        part.write_text("new")
        other.write_text("newer")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_conversion_is_told_too(tmp_path, capsys):
    """The race itself: `python -m tests.rivals`."""
    dest, lock = tmp_path / "dest", tmp_path / ".dest.lock"
    with only_writer(dest, lock):
        assert convert.main([str(save_small(tmp_path)), str(dest)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"dest is being written by process {os.getpid()} on " in line
    assert not dest.exists()


def fill(part):
    part.touch()
    with open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    """Of an open file the system says that, but not which."""
    said = r"No space left on device: '.*/results\.json'$"
    with pytest.raises(OSError, match=said), replacing(tmp_path / "results.json") as part:
        fill(part)
    assert list(tmp_path.iterdir()) == []


PIPE = """
import os, sys
from models import cli, errors
def body(flags):
    {work}
sys.exit(cli.run(body, cli.Parser(prog="x"), [], keep_compiled=False))
"""


def printing(work, stdout):
    """The status of a command that does this with that as standard output, and what it says on standard error."""
    process = subprocess.run(
        [sys.executable, "-c", PIPE.format(work=work)],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return process.returncode, process.stderr


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        ("print('a line')", 128 + signal.SIGPIPE, ""),
        ("r, w = os.pipe(); os.close(r); os.write(w, b'x')", 1, "x: error: [Errno 32] Broken pipe\n"),
        ("print('a line'); raise errors.CommandError('no')", 1, "x: error: no\n"),
    ],
    ids=["at the end", "another pipe", "another error"],
)
def test_nobody_reads_on(work, status, said):
    """`python -m experiments.eval | head -1` is no error; any other pipe that breaks is."""
    ends = os.pipe()
    with open(ends[0], "rb") as reader, open(ends[1], "wb") as writer:
        if "os.pipe" not in work:
            reader.close()
        assert printing(work, writer) == (status, said)


@pytest.mark.parametrize("lines", [1, 10_000], ids=["at the end", "on the way"])
def test_full_standard_output_is_said_once(lines):
    with open("/dev/full", "wb") as full:
        status, said = printing(f"print('a line\\n' * {lines})", full)
    assert status == 1
    assert re.fullmatch(r"x: error: \[Errno 28\] No space left on device.*\n", said)
