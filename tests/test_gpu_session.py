"""The session of GPU measurements, with steps that stand in for them: budgets, what is kept, and no GPU."""

import json
import subprocess
import sys
import time

import pytest

from experiments import gpu_session
from experiments.gpu_session import Step
from models.errors import CommandError
from tests.commands import failure

ABOUT = {"device": "a GPU", "devices": 1}
WRITES = "import pathlib, sys; print('seen'); pathlib.Path(sys.argv[1], 'results.json').write_text('{\"found\": 7}')"
# Also starts a process of its own, which must not outlive it, and is deaf to SIGINT.
HANGS = (
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)"
)


def run(steps, out, *, limit=60):
    status = gpu_session.main([f"--out={out}", f"--limit={limit}"], steps=steps, look=lambda: ABOUT)
    return status, json.loads((out / "results.json").read_text())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(gpu_session, "_GRACE_S", 0.2)
    monkeypatch.setattr(gpu_session, "_LEAST_S", 0.5)


def test_every_step_reports_and_one_that_fails_does_not_end_it(tmp_path, capsys):
    steps = (
        Step("bad", 30, ("-c", "raise SystemExit('no such thing')")),
        Step("good", 30, ("-c", WRITES, "{out}")),
    )
    status, found = run(steps, tmp_path)
    assert status == 1
    bad, good = found["steps"]
    assert (bad["status"], bad["exit"], bad["output"]) == ("failed", 1, "no such thing\n")
    assert (good["status"], good["exit"], good["results"]) == ("done", 0, {"found": 7})
    assert good["output"] == "seen\n"
    assert found["machine"]["device"] == "a GPU"
    assert "bad   failed" in capsys.readouterr().out
    assert run(steps[1:], tmp_path)[0] == 0


def test_what_runs_out_of_time_is_ended_and_the_rest_is_kept(tmp_path):
    steps = (
        Step("first", 30, ("-c", WRITES, "{out}")),
        Step("hangs", 2, ("-c", HANGS)),
        Step("last", 30, ("-c", WRITES, "{out}")),
    )
    began = time.monotonic()
    status, found = run(steps, tmp_path)
    assert time.monotonic() - began < 20
    assert status == 1
    assert [step["status"] for step in found["steps"]] == ["done", "out of time", "done"]
    child = found["steps"][1]["output"].strip()
    states = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True, check=False).stdout
    assert states.strip() == "" or states.startswith("Z")


def test_without_time_left_nothing_is_begun(tmp_path):
    steps = (Step("hangs", 30, ("-c", HANGS)), Step("never", 30, ("-c", WRITES, "{out}")))
    status, found = run(steps, tmp_path, limit=2)
    assert status == 1
    assert [step["status"] for step in found["steps"]] == ["out of time", "not begun"]


def test_results_of_an_earlier_session_are_not_taken_for_new(tmp_path):
    run((Step("one", 30, ("-c", WRITES, "{out}")),), tmp_path)
    _, found = run((Step("one", 30, ("-c", "pass")),), tmp_path)
    assert "results" not in found["steps"][0]


def test_the_steps_fit_into_nine_minutes_and_are_commands_that_there_are():
    assert sum(step.budget for step in gpu_session.STEPS) <= gpu_session.LIMIT_S < 540
    for step in gpu_session.STEPS[1:]:
        argv = [part.replace("{out}", "x") for part in step.argv]
        code = (
            "import importlib, sys; from experiments import cli\n"
            "cli.run = lambda body, parser, argv, **_: parser.parse_args(argv) and 0\n"
            "sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))"
        )
        done = subprocess.run([sys.executable, "-c", code, *argv[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_without_a_gpu_it_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    said = failure(gpu_session.main, [f"--out={tmp_path / 'out'}"], capsys)
    assert "JAX sees no NVIDIA GPU here" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(CommandError):
        gpu_session.look()


def test_bad_flags_give_one_line(capsys):
    assert "'0' is not a whole number" in failure(gpu_session.main, ["--limit=0"], capsys)
