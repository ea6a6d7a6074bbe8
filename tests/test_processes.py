"""An evaluation by two processes: the answers of one, each process its share, and no process waits for ever."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import eval as evaluation
from experiments import processes
from experiments.cli import CommandError
from experiments.processes import Group
from models import convert
from tests.commands import failure, save_checkpoint
from tests.threads import Store, in_threads

ROOT = Path(__file__).parents[1]
SCENES, BATCH = 5, 4  # 15 questions: batches 0 and 2 of process 0, 1 and the shorter 3 of process 1
SHARES = ([*range(4), *range(8, 12)], [*range(4, 8), *range(12, 15)])
LIMIT_S = 300  # far more than is needed, so that a test fails and does not hang

# What a process does that shares no evaluation, with waits that suit a test.
PROGRAM = """
import os, signal, sys, time
from experiments import cli, processes
processes.JOIN_S, processes.HEARTBEAT_S, processes.LEAVE_S = 120, 10, 60

def body(flags, group):
    if group.index == {index}:
        {action}
    {meanwhile}

parser = cli.Parser(prog="python -m experiments.x")
processes.add_flags(parser)
sys.exit(cli.run(processes.together(body), parser, None))
"""


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def two_processes(argv):
    """Run a command twice; gives exit status, standard output and standard error of process 0 and of process 1."""
    env = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}  # JAX warns of them
    env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as conftest.py has it for the run in this process
    env["JAX_PLATFORMS"] = "cpu"
    where = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    started = [
        subprocess.Popen(
            [sys.executable, *argv, *where, f"--process={index}"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=LIMIT_S) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]


def read(out):
    return json.loads((out / "results.json").read_text())


def journal(path):
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = folder / "converted"  # Orbax has processes wait for each other unless it is told not to
    assert convert.main([str(save_checkpoint(folder / "model")), str(model)]) == 0
    return [f"--model={model}", "--keep=5", f"--limit={SCENES}", f"--batch-size={BATCH}", "--seed=1"]


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    """A run of one process."""
    out = tmp_path_factory.mktemp("alone")
    assert evaluation.main([*flags, f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def shared(flags, tmp_path_factory):
    """A run of two."""
    out = tmp_path_factory.mktemp("shared") / "out"
    return out, two_processes(["-m", "experiments.eval", *flags, f"--out={out}"])


class TestTwoProcesses:
    def test_answers_and_accuracies_are_those_of_one(self, alone, shared):
        out, ended = shared
        assert [status for status, _, _ in ended] == [0, 0], ended
        one, two = read(alone), read(out)
        assert two["samples"] == one["samples"]
        assert [sample["sample"] for sample in two["samples"]] == list(range(3 * SCENES))
        assert len({sample["said"]["random"] for sample in one["samples"]}) > 3  # otherwise this proves little
        for first, second in zip(one["methods"], two["methods"], strict=True):
            times = ("prefill_s", "prefill_runs", "first_call_s")
            assert second | dict.fromkeys(times) == first | dict.fromkeys(times)

    def test_each_answers_its_share(self, shared):
        out, _ = shared
        for name, share in zip(("answers.jsonl", "answers.1.jsonl"), SHARES, strict=True):
            assert [sample["sample"] for entry in journal(out / name) for sample in entry["samples"]] == share

    def test_process_0_speaks_for_both(self, shared):
        out, ((_, table, _), (_, silence, complaints)) = shared
        assert table.startswith((out / "table.txt").read_text())
        assert silence == complaints == ""

    def test_times_are_of_process_0_and_say_so(self, shared):
        out, _ = shared
        assert read(out)["settings"]["processes"] == 2
        assert "Asked by 2 processes; prefill is of process 0" in (out / "table.txt").read_text()
        assert [entry["batch"] for entry in journal(out / "answers.jsonl") if "prefill_s" in entry] == [0, 2]
        assert not any("prefill_s" in entry for entry in journal(out / "answers.1.jsonl"))
        assert {row["prefill_runs"] for row in read(out)["methods"]} == {4}


class TestNobodyWaitsForEver:
    @pytest.mark.parametrize(
        ("index", "meanwhile"), [(0, "group.hear(0, 'never')"), (1, "group.hear(1, 'never')"), (0, "pass")]
    )
    def test_a_failure_ends_all(self, index, meanwhile):
        """Also those that have done their share."""
        action = "raise OSError('the disk is full')"
        ended = two_processes(["-c", PROGRAM.format(index=index, action=action, meanwhile=meanwhile)])
        for number, (status, out, err) in enumerate(ended):
            why = "the disk is full" if number == index else f"process {index} failed: the disk is full"
            assert status == 1, err
            assert out == ""
            assert (
                err.replace("Waiting up to 120 s for 2 processes.\n", "") == f"python -m experiments.x: error: {why}\n"
            )

    @pytest.mark.parametrize("index", [0, 1])
    def test_a_process_that_is_ended_from_outside_ends_all(self, index):
        action = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(30); sys.exit(5)"
        meanwhile = f"group.hear({index}, 'never')"
        ended = two_processes(["-c", PROGRAM.format(index=index, action=action, meanwhile=meanwhile)])
        assert ended[index][0] == -signal.SIGTERM, ended  # JAX's preemption service would swallow it
        assert ended[1 - index][0] not in (0, -signal.SIGKILL), ended


class TestGroup:
    def test_other_settings_are_named_in_all_processes(self):
        settings = [{"keep": 5, "seed": 1}, {"keep": 5, "seed": 2, "more": 3}]
        raised = in_threads([lambda group, own=own: group.agree(own) for own in settings])
        assert all(text.endswith("process 1 has other settings than process 0: more, seed") for text in raised)

    def test_the_first_failure_is_the_one_that_is_told(self):
        def fail(group):
            raise CommandError("no space")

        def follow(group):
            group.hear(0, "never")

        raised = in_threads([fail, follow, follow])
        assert raised == ["no space", *["process 0 failed: no space"] * 2]

    def test_silence_has_an_end(self, monkeypatch):
        monkeypatch.setattr(processes, "PATIENCE_S", 0.1)
        raised = in_threads([lambda group: group.hear(1, "batch 3"), lambda group: None])
        assert raised == ["process 1 kept silent for 0.1 s (batch 3)", None]

    def test_another_failure_is_no_silence(self):
        store = Store()
        store.blocking_key_value_get = lambda *_: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("UNAVAILABLE"))
        with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"):
            Group(store, index=0, count=2).hear(1, "batch 3")


class TestResume:
    @pytest.fixture
    def asked(self, monkeypatch):
        asked, original = [], evaluation.answer
        monkeypatch.setattr(
            evaluation,
            "answer",
            lambda run, inputs, indices: asked.append(indices[0]) or original(run, inputs, indices),
        )
        return asked

    def evaluate(self, flags, monkeypatch):
        """What `main` does, by two processes that are threads; gives what each raised."""
        bodies = []
        monkeypatch.setattr(processes, "together", lambda body: lambda parsed: bodies.append((body, parsed)))
        evaluation.main(flags)
        ((body, parsed),) = bodies
        return in_threads([lambda group: body(parsed, group)] * 2)

    def test_each_process_goes_on_where_it_stopped(self, flags, alone, shared, tmp_path, asked, monkeypatch):
        out = tmp_path / "out"
        shutil.copytree(shared[0], out)
        (out / "results.json").unlink()
        for name, lines in (("answers.jsonl", 3), ("answers.1.jsonl", 2)):  # all of process 0, one batch of process 1
            whole = (out / name).read_text().splitlines(keepends=True)
            (out / name).write_text("".join(whole[:lines]) + whole[-1][:9])
        assert self.evaluate([*flags, f"--out={out}"], monkeypatch) == [None, None]
        assert asked == [12]
        assert read(out)["samples"] == read(alone)["samples"]

    def test_another_number_of_processes_is_refused(self, flags, alone, shared, tmp_path, asked, capsys, monkeypatch):
        line = failure(evaluation.main, [*flags, f"--out={shared[0]}"], capsys)
        assert "holds a run with other settings (processes)" in line
        shutil.copytree(alone, tmp_path / "out")
        raised = self.evaluate([*flags, f"--out={tmp_path / 'out'}"], monkeypatch)
        assert all("holds a run with other settings (processes)" in text for text in raised)
        assert asked == []


class TestBadInput:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--processes=2"], "go together"),
            (["--process=0"], "go together"),
            (["--coordinator=localhost:1234"], "go together"),
            (["--coordinator=localhost:1234", "--processes=2"], "go together"),
            (["--coordinator=auto", "--process=0"], "leave them out"),
            (["--coordinator=localhost:1234", "--processes=2", "--process=2"], "it is 0 to COUNT - 1"),
            (["--coordinator=localhost:1234", "--processes=2", "--process=-1"], "it is 0 to COUNT - 1"),
            (["--coordinator=localhost:1234", "--processes=0", "--process=0"], "'0' is not a whole number"),
            (["--coordinator=localhost:1234", "--processes=2", "--process=x"], "invalid int value"),
            *(
                ([f"--coordinator={text}", "--processes=2", "--process=0"], f"{text!r} is neither HOST:PORT")
                for text in ("", "localhost", ":1234", "localhost:", "localhost:x", "localhost:0", "localhost:65536")
            ),
        ],
    )
    def test_flags(self, tmp_path, capsys, flags, said):
        assert said in failure(evaluation.main, [*flags, f"--out={tmp_path / 'out'}"], capsys)
        assert not (tmp_path / "out").exists()

    def test_port_is_taken(self, capsys):
        with contextlib.closing(socket.create_server(("", 0))) as server:
            where = f"--coordinator=localhost:{server.getsockname()[1]}"
            line = failure(evaluation.main, [where, "--processes=2", "--process=0"], capsys)
        assert f"{where}: Address already in use" in line

    def test_no_process_0(self, capsys, monkeypatch):
        monkeypatch.setattr(processes, "JOIN_S", 0.1)
        where = f"localhost:{free_port()}"
        line = failure(evaluation.main, [f"--coordinator={where}", "--processes=2", "--process=1"], capsys)
        assert f"no process 0 at {where} for 0.1 s" in line

    def test_no_cluster(self, capsys, monkeypatch):
        def initialize(**_):
            raise ValueError("coordinator_address should be defined.")

        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        line = failure(evaluation.main, ["--coordinator=auto"], capsys)
        assert "--coordinator=auto: coordinator_address should be defined." in line
