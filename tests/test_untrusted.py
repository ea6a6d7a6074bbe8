"""The guards around files and parsers of others."""

import contextlib
import gc
import logging
import os
import sys
import warnings

import pytest

from models.io.untrusted import file_problem, limited, parsing, read_bytes


class Refused(Exception):
    pass


class PanicException(BaseException):
    """As pyo3's."""


@pytest.mark.parametrize(
    "error", [ValueError("no\nway"), RecursionError("deep"), MemoryError(), PanicException("index")]
)
def test_whatever_a_parser_raises_is_one_line(error):
    with (
        pytest.raises(Refused, match=rf"^x\.bin cannot be read \({type(error).__name__}[^\n]*\)$"),
        parsing("x.bin", Refused),
    ):
        raise error


def test_what_is_ours_stays_as_it_is():
    with pytest.raises(Refused, match=r"^mine$"), parsing("x", Refused):
        raise Refused("mine")
    with pytest.raises(KeyboardInterrupt), parsing("x", Refused):
        raise KeyboardInterrupt


def test_nothing_is_shown(capfd, caplog):
    with warnings.catch_warnings(record=True) as warned, parsing("x", Refused):
        warnings.warn("of Python", stacklevel=1)
        logging.getLogger("library").error("of a logger")
        os.write(1, b"of C")
        os.write(2, b"of Rust")
    assert warned == []
    assert capfd.readouterr() == ("", "")
    logging.getLogger("library").error("heard")
    print("said")
    out, _ = capfd.readouterr()
    assert (out, caplog.messages) == ("said\n", ["heard"])


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "astray").symlink_to("nowhere")
    (tmp_path / "file").touch()
    assert file_problem(tmp_path / "file") is None
    assert file_problem(tmp_path) == "is a folder, not a file"
    assert file_problem(tmp_path / "pipe") == "is a pipe, not a file"
    assert "symbolic links" in file_problem(tmp_path / "loop")
    assert file_problem(tmp_path / "astray") == "is a link to nothing"
    assert file_problem(tmp_path / "none") == "does not exist (no such file)"
    assert file_problem(tmp_path / "file" / "below") == "does not exist (no such file)"
    assert "null byte" in file_problem(tmp_path / "a\0b")
    assert "too long" in file_problem(tmp_path / ("x" * 300))


def test_files_of_others(tmp_path, monkeypatch):
    """As root everything can be read; so the question is asked, and not tried."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    assert file_problem(tmp_path / "file") == "cannot be read by this user (permission denied)"


def spin():
    while True:
        pass


def test_time_is_limited_and_then_is_not():
    with pytest.raises(TimeoutError, match=r"took more than 0\.05 s"), limited(0.05, 2**28):
        spin()
    sum(range(3_000_000))  # nothing rings any more


def test_time_is_limited_also_where_it_runs_out_in_the_garbage_collector(capsys):
    """Python forgets an exception from there: a timer that rings once would leave the body without a limit."""

    def callback(phase, info):
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(callback)
        spin()

    def body():
        gc.collect()
        spin()

    gc.callbacks.append(callback)
    with pytest.raises(TimeoutError), limited(0.05, 2**28):
        body()
    assert capsys.readouterr().err == ""


def test_a_file_is_regular_small_and_inside(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "secret"
    inside.mkdir()
    outside.write_bytes(b"abc")
    (inside / "link").symlink_to(outside)
    with pytest.raises(Refused, match="is a link out of"):
        read_bytes(inside / "link", Refused, inside=[inside])
    with pytest.raises(Refused, match="has 3 bytes; at most 2 are read"):
        read_bytes(outside, Refused, most=2)
    assert read_bytes(inside / "link", Refused, inside=[inside, tmp_path]) == b"abc"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_memory_is_limited_and_then_is_not():
    more = 2**31  # what earlier tests gave back may lie free in the heap, and needs no new addresses
    with pytest.raises(MemoryError), limited(5, 2**24):
        bytes(more)
    assert len(bytes(more)) == more
