"""The command that times many carvings: what it leaves behind, and that its busy loops end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.core import results
from experiments.studies import carve_tail
from tests.commands import failure
from tokencarve_jax._blas import open_blas

LITTLE = ["--tokens=12", "--width=16", "--keep=4", "--repeats=3"]


def test_it_leaves_every_time_and_says_how_far_the_worst_is_from_the_median(tmp_path, capsys):
    assert carve_tail.main([*LITTLE, "--busy=1", f"--out={tmp_path}"]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["settings"] == {"keep": 4, "busy": 1, "repeats": 3, "tokens": 12, "width": 16}
    assert all(len(taken) == 3 and min(taken) > 0 for taken in report["seconds"].values())
    if open_blas():
        cores = report["machine"]["cores"]
        assert report["threads"] == {carve_tail.CARVING: 1, carve_tail.INSTALLED: cores}
    out = capsys.readouterr().out
    assert "beside 1 busy loops" in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("as ")] == [
        f"{max(taken) / sorted(taken)[1]:.1f}" for taken in report["seconds"].values()
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--keep=13"], "keep=13: keep as a count must be in 1..12"),
        (["--out={tmp}/file"], "there is a file of that name"),
    ],
)
def test_bad_input_gives_one_line(argv, words, tmp_path, capsys):
    (tmp_path / "file").write_text("hello")
    given = [flag.format(tmp=tmp_path) for flag in argv]
    assert words in failure(carve_tail.main, [*LITTLE, f"--out={tmp_path / 'out'}", *given], capsys)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc")
@pytest.mark.parametrize("end", ["raise KeyboardInterrupt", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_busy_loops_end_with_what_started_them(end):
    code = f"""
from experiments.studies import carve_tail
import subprocess
popen, started = subprocess.Popen, []
subprocess.Popen = lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
with carve_tail.busy_loops(2):
    print(*[loop.pid for loop in started], flush=True)
    {end}
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    loops = run.stdout.split()
    assert len(loops) == 2, run.stderr
    limit = time.monotonic() + 30
    while alive := [pid for pid in loops if "Z" not in state(pid)]:
        assert time.monotonic() < limit, alive
        time.sleep(0.1)


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_a_choice_of_threads_is_recorded(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert results.machine()["environment"]["OPENBLAS_NUM_THREADS"] == "3" == os.environ["OPENBLAS_NUM_THREADS"]
