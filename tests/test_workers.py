"""Workers: each call is done once whoever is lost, the answers are those of one, and what is wrong is one line."""

import builtins
import json
import os
import random
import signal
import sys
import time
from operator import methodcaller

import pytest
import ray

from experiments import eval as evaluation
from experiments.core import ray_workers, runner
from experiments.core.workers import Call
from models.errors import CommandError
from tests.commands import failure
from tests.kills import on_ray as kills
from tests.stub_workers import Differing, Failing, Making


@pytest.fixture(scope="module")
def session():
    """Ray, started once."""
    ray_workers._connect(None, 8)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(session, tmp_path_factory):
    with runner.start(Making(tmp_path_factory.mktemp("marks")), workers=2) as pool:
        yield pool


def doubles(count, method="double", **options):
    return [Call(number, methodcaller(method, number), **options) for number in range(count)]


class TestPools:
    def test_alone_in_order(self, tmp_path):
        with runner.start(Making(tmp_path)) as pool:
            assert (pool.count, pool.identity) == (1, {"code": 1})
            done = [(call.key, found) for call, found in pool.run(doubles(5))]
        assert done == [(number, (2 * number, os.getpid())) for number in range(5)]

    def test_every_call_once(self, pool):
        done = [(call.key, found[0]) for call, found in pool.run(doubles(50))]
        assert sorted(done) == [(number, 2 * number) for number in range(50)]
        assert list(pool.run([])) == []

    def test_the_first_worker_does_what_is_for_it(self, pool):
        calls = [*doubles(6, first=True), *(Call(key, methodcaller("double", key)) for key in range(6, 30))]
        by = {call.key: found[1] for call, found in pool.run(calls)}
        assert by.keys() == set(range(30))
        assert len({by[key] for key in range(6)}) == 1
        assert os.getpid() not in by.values()

    @pytest.mark.parametrize("first", [True, False])
    def test_lost_workers_lose_nothing(self, pool, first):
        keys = range(100 + 10 * first, 106 + 10 * first)
        done = list(pool.run([Call(key, methodcaller("die_once", key), first=first) for key in keys]))
        assert sorted((call.key, found[0]) for call, found in done) == [(key, 2 * key) for key in keys]

    def test_a_lost_worker_is_said_in_a_line_at_once(self, pool, monkeypatch):
        said = []
        monkeypatch.setattr(ray_workers.tqdm, "write", lambda line, **_: said.append((line, time.monotonic())))
        ((_, (_, pid)),) = pool.run(doubles(1))
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert sorted(found[0] for _, found in pool.run(doubles(4))) == [0, 2, 4, 6]
        line, when = said[0]  # a busy machine may lose its neighbour too
        assert line == "A worker was lost; another takes over what it was doing."
        assert when - start < 10

    def test_a_call_that_ends_every_worker_is_given_up(self, pool):
        with pytest.raises(CommandError, match=r"4 workers were lost at 'poison': .*"):
            list(pool.run([Call("poison", methodcaller("die"))]))

    @pytest.mark.parametrize(
        ("method", "said"), [("refuse", "no such thing"), ("break_down", "ZeroDivisionError: by nought")]
    )
    def test_an_exception_is_one_line(self, session, tmp_path, method, said):
        with (
            runner.start(Making(tmp_path), workers=2) as pool,
            pytest.raises(CommandError, match=f"^{said}$"),
        ):
            list(pool.run([Call(0, methodcaller(method))]))

    def test_a_worker_that_cannot_be_made(self, session, tmp_path):
        with pytest.raises(CommandError, match="no such model"), runner.start(Failing(tmp_path), workers=2):
            pass

    def test_workers_that_differ(self, session, tmp_path):
        def run():
            with runner.start(Differing(tmp_path), workers=2) as pool:
                for _ in range(600):  # until the second is there
                    list(pool.run(doubles(2)))
                    time.sleep(0.05)

        with pytest.raises(CommandError, match="the machines of the cluster differ in code"):
            run()

    def test_more_workers_than_the_cluster_has_room_for(self, session, tmp_path):
        with (
            pytest.raises(CommandError, match="99 workers need a CPU each"),
            runner.start(Making(tmp_path), workers=99),
        ):
            pass

    def test_without_ray(self, tmp_path, capsys, monkeypatch):
        original = builtins.__import__

        def missing(name, *args, **options):
            if name == "experiments.core.ray_workers":
                raise ModuleNotFoundError("No module named 'ray'", name="ray")
            return original(name, *args, **options)

        monkeypatch.setattr(builtins, "__import__", missing)
        line = failure(evaluation.main, ["--workers=2", f"--out={tmp_path / 'out'}"], capsys)
        assert "several workers need Ray, which is not installed: pip install -e '.[ray]'" in line
        assert not (tmp_path / "out").exists()

    def test_no_cluster(self, tmp_path):
        """In a process of its own: this one has joined one."""
        argv = [sys.executable, "-m", "experiments.eval", "--ray-address=127.0.0.1:1", f"--out={tmp_path / 'out'}"]
        status, out, err = kills.finish(kills.start(argv))
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "the Ray cluster at 127.0.0.1:1 cannot be joined: [Errno 111] Connection refused" in err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("flag", ["--workers=0", "--workers=x", "--coordinator=auto"])
    def test_flags(self, tmp_path, capsys, flag):
        failure(evaluation.main, [flag, f"--out={tmp_path / 'out'}"], capsys)


@pytest.fixture(scope="module")
def alone(llava_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    assert evaluation.main(kills.command(llava_folder, out)[3:]) == 0
    return out


class TestEvaluation:
    """As processes: what is tested is how they end."""

    def test_two_workers_give_the_answers_of_one(self, llava_folder, alone, tmp_path):
        status, table, err = kills.finish(kills.start(kills.command(llava_folder, tmp_path, "--workers=2")))
        assert (status, err) == (0, "")  # Ray is quiet
        assert kills.samples(tmp_path) == kills.samples(alone)
        assert (
            len({sample["predictions"]["random"] for sample in kills.samples(alone)}) > 3
        )  # otherwise this proves little
        assert table.startswith((tmp_path / "table.txt").read_text())
        assert "Asked by 2 workers; prefill is of the first" in table
        report = json.loads((tmp_path / "results.json").read_text())
        assert report["settings"]["workers"] == 2
        assert {row["prefill_runs"] for row in report["methods"]} == {20}
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {path.name for path in alone.iterdir()}  # no lock, no part

    @pytest.mark.slow
    @pytest.mark.parametrize("target", kills.TARGETS)
    def test_killed(self, llava_folder, alone, tmp_path, target):
        found = kills.kill_once(
            kills.command(llava_folder, tmp_path, "--workers=2"), tmp_path, target, 2.0, random.Random(0)
        )
        assert found["hit"] == (2 if target == "both" else 1)
        assert found["status"] == 0, found["err"]
        assert found["runs"] == (1 if target == "worker" else 2)
        assert kills.samples(tmp_path) == kills.samples(alone)
        agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # they look for Ray a minute long before they end
        assert not kills.left_over({pid: t for pid, t in found["family"].items() if t not in agents}, patience=60)

    @pytest.mark.slow
    def test_interrupted(self, llava_folder, tmp_path):
        process = kills.start(kills.command(llava_folder, tmp_path, "--workers=2"))
        while not kills.workers_of(process.pid) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)  # to all, as a terminal does
        status, out, err = kills.finish(process)
        assert (status, out) == (130, "")
        assert err == "\npython -m experiments.eval: interrupted; the same command goes on from here\n"
