"""The session of GPU measurements, with steps that stand in for them: budgets, what is kept, and no GPU."""

import importlib
import json
import subprocess
import time

import pytest

from experiments import gpu_session
from experiments.core import cli
from experiments.gpu_session import Step
from tests.commands import failure

WRITES = "import pathlib, sys; print('seen'); pathlib.Path(sys.argv[1], 'results.json').write_text('{\"found\": 7}')"
GOOD = Step("good", 30, ("-c", WRITES, "{out}"))
# Also starts a process of its own, which must not outlive it, and ignores SIGINT.
HANGS = (
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)"
)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A session of some steps: its exit status and what it wrote."""
    monkeypatch.setattr(gpu_session, "_GRACE_S", 0.2)
    monkeypatch.setattr(gpu_session, "_LEAST_S", 0.5)
    monkeypatch.setattr(gpu_session, "look", lambda: {"device": "a GPU", "devices": 1})

    def session(*steps, limit=60):
        monkeypatch.setattr(gpu_session, "STEPS", steps)
        status = gpu_session.main([f"--out={tmp_path}", f"--seconds={limit}"])
        return status, json.loads((tmp_path / "results.json").read_text())

    return session


def test_every_step_reports_and_one_that_fails_does_not_end_it(run, capsys):
    status, found = run(Step("bad", 30, ("-c", "raise SystemExit('no such thing')")), GOOD)
    assert status == 1
    bad, good = found["steps"]
    assert (bad["status"], bad["exit"], bad["output"]) == ("failed", 1, "no such thing\n")
    assert (good["status"], good["exit"], good["results"]) == ("done", 0, {"found": 7})
    assert good["output"] == "seen\n"
    assert (found["kind"], found["machine"]["device"]) == ("gpu-session", "a GPU")
    assert "bad   failed" in capsys.readouterr().out
    assert run(GOOD)[0] == 0
    _, found = run(GOOD._replace(argv=("-c", "pass")))
    assert "results" not in found["steps"][0]  # those of an earlier session are not taken for new


def test_what_runs_out_of_time_is_ended_and_the_rest_is_kept(run):
    began = time.monotonic()
    status, found = run(GOOD, Step("hangs", 2, ("-c", HANGS)), GOOD)
    assert time.monotonic() - began < 20
    assert status == 1
    assert [step["status"] for step in found["steps"]] == ["done", "out of time", "done"]
    child = found["steps"][1]["output"].strip()
    states = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True, check=False).stdout
    assert states.strip() == "" or states.startswith("Z")


def test_without_time_left_nothing_is_begun(run):
    status, found = run(Step("hangs", 30, ("-c", HANGS)), GOOD, limit=2)
    assert status == 1
    assert [step["status"] for step in found["steps"]] == ["out of time", "not begun"]


def test_the_steps_fit_into_nine_minutes_and_are_commands_that_there_are(monkeypatch):
    assert sum(step.budget for step in gpu_session.STEPS) <= gpu_session.LIMIT_S < 540
    monkeypatch.setattr(cli, "run", lambda body, parser, argv, **_: parser.parse_args(argv) and 0)
    for _, _, (option, module, *argv) in gpu_session.STEPS[1:]:
        assert option == "-m"
        assert importlib.import_module(module).main(argv) == 0


def test_without_a_gpu_it_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "JAX sees no NVIDIA GPU here" in failure(gpu_session.main, [f"--out={tmp_path / 'out'}"], capsys)
    assert not (tmp_path / "out").exists()


def test_bad_flags_give_one_line(capsys):
    assert "'0' is not a whole number" in failure(gpu_session.main, ["--seconds=0"], capsys)
