"""The paper's table, apart from lmms-eval: `.ci/lmms` runs it whole."""

import importlib.metadata
import json
import sys
import types
from pathlib import Path

import pytest
from PIL import Image
from tqdm import tqdm

from experiments import reproduce
from experiments.comparison.cells import AtLayer, Line
from experiments.core import cli
from experiments.core.config import PromptConfig
from experiments.data.formats import mmbench_question
from experiments.evaluation.worker import ModelWorker
from experiments.lmms import harness, plan, prompts, protocol, reproduction, sets, tables
from experiments.lmms.requests import Request
from experiments.lmms.tables import Column
from experiments.reports import html, protocol_tables
from experiments.reports.compare_tables import COMPUTE, COUNT
from experiments.speed.targets import CHIPS
from tests.commands import failure, save_checkpoint

ROOT = Path(__file__).parents[1]
COLUMNS = (Column(192, "svd"), Column(128, "svd"))
SCORES = {
    "mme": {
        "vanilla": {"mme_perception_score": 1500.0, "mme_cognition_score": 360.0},
        "tokencarve-svd@2=192": {"mme_perception_score": 1490.0, "mme_cognition_score": 350.0},
        "tokencarve-svd@2=128": {"mme_perception_score": 1400.0, "mme_cognition_score": 274.0},
    },
    "gqa": {
        "vanilla": {"exact_match": 0.62},
        "tokencarve-svd@2=192": {"exact_match": 0.60},
        "tokencarve-svd@2=128": {"exact_match": 0.589},
    },
}


@pytest.fixture(scope="module")
def rows():
    return tables.rows([sets.SETS["mme"], sets.SETS["gqa"], sets.SETS["mmvet"]], SCORES, COLUMNS)


class TestTable:
    def test_numbers(self, rows):
        mme, perception, gqa, mmvet = rows
        assert (mme["vanilla"], mme["paper"], mme["llava"]) == (1860.0, 1868.0, None)
        assert (perception["vanilla"], perception["paper"], perception["llava"]) == (1500.0, None, 1510.7)
        assert mme["carved"][1] == {
            "method": "tokencarve-svd@2=128",
            "here": 1674.0,
            "of_vanilla": 0.9,
            "paper": 1829.0,
            "paper_of_vanilla": 1829 / 1868,
        }
        assert gqa["carved"][1]["of_vanilla"] == pytest.approx(0.95)
        assert gqa["carved"][1]["paper"] is None
        assert mmvet["vanilla"] is None
        assert mmvet["carved"][0]["of_vanilla"] is None

    def test_averages(self, rows):
        """Of MME and GQA, MME's perception left out; with a published figure there is MME alone."""
        first, second = tables.averages(rows)
        assert first["of_vanilla"] == pytest.approx((1840 / 1860 + 60 / 62) / 2)
        assert (first["sets"], first["both"], first["paper"]) == (2, 0, None)
        assert second["of_vanilla"] == pytest.approx((0.9 + 0.95) / 2)
        assert (second["here"], second["paper"], second["both"]) == (0.9, 1829 / 1868, 1)

    def test_text(self, rows):
        lines = [" ".join(line.split()) for line in tables.text(rows, COLUMNS, ["A note."]).splitlines()]
        assert lines[0] == "vanilla LLaVA's paper's 192 of vanilla 128 of vanilla paper's of its vanilla"
        assert lines[2] == "MME 1860.0 1868.0 1840.0 98.9 % 1674.0 90.0 % 1829.0 97.9 %"
        assert lines[5] == "MM-Vet 31.1 31.0 29.5 95.2 %"
        assert lines[-3] == "mean of sets with both 90.0 % 97.9 %"
        assert lines[-1] == "A note."

    def test_several_routes(self, rows):
        columns = (Column(128, "svd"), Column(128, "subspace"))
        assert "128, svd" in tables.text(rows, columns, []).splitlines()[0]

    def test_a_metric_that_is_missing(self):
        assert tables.value(sets.SETS["mme"].figures[0], {"mme_perception_score": 1.0}) is None
        assert tables.value(sets.named("mine").figures[0], {"score": 0.5, "other": 1.0}) == 0.5


class TestSets:
    def test_every_set_has_a_sample(self):
        for name in sets.SETS:
            (row,) = (harness.HERE / "samples" / f"{name}.jsonl").read_text().splitlines()
            assert json.loads(row)["question"]

    def test_tasks_of_our_own_are_here(self):
        own = {one.task for one in sets.SETS.values() if one.folder is None}
        assert own == {path.stem for path in harness.HERE.glob("*.yaml")}
        for name in own:
            assert f"task: {name}\n" in (harness.HERE / f"{name}.yaml").read_text()

    def test_published_figures(self):
        """The paper's figure 1 says that the mean relative change is -1.54 %."""
        figures = [figure for one in sets.SETS.values() for figure in one.figures if figure.vanilla]
        change = [figure.carved / figure.vanilla - 1 for figure in figures]
        assert len(change) == 8
        assert sum(change) / 8 == pytest.approx(-0.0154, abs=5e-5)

    def test_mmbench_asks_as_llava_does(self):
        (row,) = (harness.HERE / "samples" / "mmbench.jsonl").read_text().splitlines()
        doc = json.loads(row)
        assert prompts.mmbench_doc_to_text(doc) == (
            "The picture shows a kitchen.\nWhich of these does the cup stand on?\nA. a chair\nB. a table\n"
            "Answer with the option's letter from the given choices directly."
        )
        assert mmbench_question(doc | {"hint": None, "B": None}) == (
            "Which of these does the cup stand on?\nA. a chair",
            ["a chair"],
        )

    def test_seed_sees_the_frame_in_the_middle(self):
        frames = [Image.new("L", (1, 1), i) for i in range(8)]
        for shown, middle in ((frames, 4), (frames[:1], 0)):
            (seen,) = prompts.seed_doc_to_visual({"image": shown})
            assert (seen.mode, seen.getpixel((0, 0))) == ("RGB", (middle,) * 3)


class TestCommand:
    def test_without_lmms_eval(self, capsys, monkeypatch):
        monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
        assert harness.INSTALL in failure(reproduce.main, ["--dry-run"], capsys)

    def test_readme_says_how_to_install_it(self):
        assert f"```bash lmms\n{harness.INSTALL}\n```" in (ROOT / "README.md").read_text()
        assert '[project.entry-points."lmms_eval.models"]' in (ROOT / "pyproject.toml").read_text()

    @pytest.mark.parametrize("flags", [["--keep", "5", "5"], ["--tasks", "pope", "pope"]])
    def test_twice(self, flags, capsys, monkeypatch):
        monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: True)
        assert "is there twice" in failure(reproduce.main, flags, capsys)

    def test_columns_are_schedules(self, monkeypatch):
        configs = []
        monkeypatch.setattr(harness, "require", lambda: None)
        monkeypatch.setattr(reproduction, "dry_run", lambda config: (configs.append(config), ("", 0))[1])
        assert reproduce.main(["--dry-run", "--keep", "0.222", "64", "--information", "svd", "subspace"]) == 0
        (config,) = configs
        names = ["tokencarve-svd@2=0.222", "tokencarve-svd@2=64", "tokencarve@2=0.222", "tokencarve@2=64"]
        assert config.cells == ["vanilla", *names]
        schedules = config.worker.comparison.schedules
        assert [(name, " ".join(map(str, cuts))) for name, cuts in schedules] == [(name, name) for name in names]
        assert (config.worker.batch_size, config.sets) == (1, tuple(sets.SETS.values()))
        assert config.worker.prompt == PromptConfig()

    @pytest.mark.parametrize(("model", "notes"), [(str(cli.SHIPPED), 1), ("somebody/else", 0)])
    def test_the_shipped_model_knows_no_benchmark(self, model, notes, capsys, monkeypatch):
        monkeypatch.setattr(harness, "require", lambda: None)
        monkeypatch.setattr(reproduction, "reproduce", lambda config: ("a table", []))
        assert reproduce.main([f"--model={model}"]) == 0
        assert capsys.readouterr().err.count("note: the shipped model knows its own scenes alone") == notes


LINES = (
    Line(64, COUNT, "mine", "m"),
    Line(64, COMPUTE, "mine", "m at 90"),
    Line(64, COUNT, "random", "r"),
    Line(64, COUNT, "downsampled", "d"),
    Line(64, COMPUTE, "downsampled", None, "it saves nothing"),
)
# GQA's marks are of single questions, half a mark is right; SEED's are of the whole set.
MARKS = {
    "vanilla": [1, 1, 1, 0.5],
    "m": [1, 1, 0, 0.6],
    "m at 90": [1, 1, 1, 0.4],
    "r": [1, 0, 0, 0],
    "d": [1, 0, 0, 0.9],
}
SEED = {"vanilla": 0.5, "m": 0.4, "m at 90": 0.5, "r": 0.3, "d": 0.2}
ENTRIES = {
    "gqa": {
        key: {"metrics": {"exact_match": sum(own) / 4}, "marks": own, "lost": [0.25]} for key, own in MARKS.items()
    },
    "seed": {key: {"metrics": {"seed_all": share}, "marks": []} for key, share in SEED.items()},
}


class TestProtocol:
    @pytest.fixture
    def found(self):
        places = (AtLayer("random", 2, 64, "r"),)
        return protocol.protocol([sets.SETS["gqa"], sets.SETS["seed"]], LINES, places, ENTRIES)

    def test_scores_of_whole_sets(self, found):
        rows = {(row["method"], row["basis"]): row for row in found["rows"]}
        assert rows.keys() == {
            ("vanilla", ""),
            ("mine", COUNT),
            ("mine", COMPUTE),
            ("random", COUNT),
            ("downsampled", COUNT),
        }
        mine = rows["mine", COUNT]
        assert mine["scores"] == {"GQA": pytest.approx(65), "SEED": pytest.approx(40)}
        assert mine["of_vanilla"] == pytest.approx((65 / 87.5 + 0.8) / 2)
        assert mine["over"]["random"] == pytest.approx((65 / 87.5 + 0.8) / 2 - (25 / 87.5 + 0.6) / 2)
        assert mine["over"]["downsampled"] == pytest.approx((65 / 87.5 + 0.8) / 2 - (47.5 / 87.5 + 0.4) / 2)
        assert rows["mine", COMPUTE]["over"]["random"] is None  # at equal compute there is no such row here
        assert rows["random", COUNT]["over"] == {"random": None, "downsampled": None}

    def test_marks_of_questions(self, found):
        assert list(found["sets"]) == ["GQA"]
        gqa = found["sets"]["GQA"]
        assert (gqa["vanilla"]["right"], gqa["vanilla"]["of"]) == (4, 4)
        floors = {(row["method"], row["basis"]): row for row in gqa["floors"]}
        assert floors["mine", COUNT]["accuracy"]["right"] == floors["mine", COMPUTE]["accuracy"]["right"] == 3
        assert floors["mine", COUNT]["over"]["random"][0] == (3 - 1) / 4
        groups = {row["method"]: row for row in gqa["groups"]}
        # The down-sampled image answers questions 0 and 3; of 1 and 2 the method answers one.
        assert [(groups["mine"][name]["right"], groups["mine"][name]["of"]) for name in ("hard", "easy")] == [
            (1, 2),
            (2, 2),
        ]
        assert [(row["layer"], row["accuracy"]["right"], row["lost"]) for row in gqa["layers"]] == [(2, 1, 0.25)]

    def test_tables(self, found):
        text = protocol_tables.markdown(protocol_tables.of_benchmarks(found))
        titles = [line for line in text.splitlines() if line.startswith("#")]
        assert titles == [
            "### Benchmarks",
            "### GQA: Above the floors",
            "### GQA: What down-sampling cannot answer",
            "### GQA: Where the cut is",
        ]
        line = next(line for line in text.splitlines() if line.startswith("| mine") and "count, 64" in line)
        assert [part.strip() for part in line.split("|")[3:8]] == ["65", "40", "77.1 %", "+32.9", "+30.0"]

    def test_the_plan_adds_up(self):
        (gqa, own, whole) = plan.rows({"GQA": 100, "mine": None}, {"vanilla": 5 * 10**12, "carved": 2 * 10**12})
        flops = 100 * (5 + 2 + 5) * 10**12
        assert (gqa["questions"], gqa["answers"], gqa["flops"]) == (100, 200, flops)
        assert gqa["hours"]["a100"] == pytest.approx(flops / (0.4 * 312e12) / 3600)
        assert gqa["hours"].keys() == CHIPS.keys()
        assert (own["flops"], own["hours"]) == (None, {})
        assert {**whole, "set": "GQA"} == gqa
        lines = plan.text([gqa, own, whole], {"vanilla": 1, "carved": 1}).splitlines()
        assert lines[2].split()[:4] == ["GQA", "100", "200", "1.2"]
        assert lines[3].split() == ["mine", "not", "known"]
        assert "An estimate: 2 ways to ask" in lines[-1]

    def test_flags(self, capsys, monkeypatch):
        monkeypatch.setattr(harness, "require", lambda: None)
        assert "--methods goes with --protocol" in failure(reproduce.main, ["--methods", "fastv"], capsys)
        assert "--border=drop goes without" in failure(reproduce.main, ["--protocol", "--border=drop"], capsys)
        assert "--information goes without" in failure(reproduce.main, ["--protocol", "--information", "svd"], capsys)


class Speaker:
    """Asks as `experiments.lmms.model.Speaker` does, which needs lmms-eval."""

    def __init__(self, answers, cell):
        self.answers, self.cell, self.broken = answers, cell, False


class Bench:
    """Two questions, right where a cell says "yes"; stops at the score of a number."""

    scored, stop = [], None

    def __init__(self, asked, include=()):
        self.sets, self.skipped = asked, {}

    def questions(self, one):
        return 2

    def load(self, one):
        return one.task

    def score(self, speaker, task, *, limit, folder, by_question):
        if len(self.scored) == self.stop:
            raise KeyboardInterrupt
        self.scored.append(speaker.cell)
        speaker.asked = [Request(task, "test", i, f"Is it {i}?", lambda: [Image.new("RGB", (8, 8))]) for i in range(2)]
        with tqdm(disable=True) as bar:
            speaker.answers.ask(speaker.asked, speaker.together, bar)
        marks = [float(speaker.answers.prediction(one, speaker.cell) == "yes") for one in speaker.asked]
        return {"acc": sum(marks) / 2}, marks


class TestRun:
    """The command, with a worker that says "yes" to the first question, and where nothing is cut to the second too."""

    @pytest.fixture
    def argv(self, tmp_path, monkeypatch):
        asked = []

        def answer(worker, questions, indices, cells, *, max_new_tokens, beside_vanilla):
            asked.append((list(indices), list(cells), beside_vanilla))
            said = ["yes" if index == 0 else "no" for index in indices]
            found = {cell: {"prediction": ["yes"] * len(said) if cell == "vanilla" else said} for cell in cells}
            for columns in found.values():
                columns |= {"lost": [0.5 + index / 4 for index in indices]} if beside_vanilla else {}
            return {"indices": list(indices), "errors": {}, "found": found}

        monkeypatch.setattr(ModelWorker, "answer", answer)
        monkeypatch.setattr(reproduction, "Harness", Bench)
        monkeypatch.setattr(reproduction, "GROUP", 4)
        monkeypatch.setattr(harness, "require", lambda: None)
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
        monkeypatch.setitem(sys.modules, "experiments.lmms.model", types.SimpleNamespace(Speaker=Speaker))
        monkeypatch.setattr(Bench, "scored", [])
        monkeypatch.setattr(Bench, "stop", None)
        self.asked = asked
        model = save_checkpoint(tmp_path / "model")
        return [
            "--protocol",
            f"--model={model}",
            "--keep=5",
            "--methods",
            "divprune",
            "--tasks",
            "mine",
            "--batch-size=1",
        ]

    def test_it_is_judged_and_goes_on(self, argv, tmp_path, capsys, monkeypatch):
        assert reproduce.main([*argv, f"--out={tmp_path / 'whole'}"]) == 0
        out, err = capsys.readouterr()
        assert "An estimate: " in err
        assert "mine: What down-sampling cannot answer" in out
        report = json.loads((tmp_path / "whole" / "results.json").read_text())
        judged = report["protocol"]["sets"]["mine"]
        assert (judged["vanilla"]["right"], judged["vanilla"]["of"]) == (2, 2)
        assert {row["method"]: row["hard"]["right"] for row in judged["groups"]}["divprune"] == 0
        assert {row["lost"] for row in judged["layers"]} == {(0.5 + 0.75) / 2}
        assert {form for row in judged["positions"] for form in row["forms"]} == {"renumbered", "kept", "median"}
        cells = Bench.scored.copy()
        assert len(set(cells)) == len(cells) == len(report["scores"]["mine"])
        assert all(len(own) <= 4 for _, own, _ in self.asked)
        assert html.write(tmp_path / "whole").read_text().count("What down-sampling cannot answer") >= 1

        Bench.scored.clear()
        monkeypatch.setattr(Bench, "stop", 6)
        assert reproduce.main([*argv, f"--out={tmp_path / 'parts'}"]) == 130
        monkeypatch.setattr(Bench, "stop", None)
        assert reproduce.main([*argv, f"--out={tmp_path / 'parts'}"]) == 0
        assert Bench.scored == cells
        for name in ("answers.jsonl", "scores.jsonl", "mine.jsonl", "protocol.md"):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    def test_the_plan_counts_as_the_model_does(self, argv, monkeypatch):
        configs = []
        monkeypatch.setattr(reproduction, "reproduce", lambda config: (configs.append(config.worker), ("", []))[1])
        assert reproduce.main(argv) == 0
        worker = ModelWorker(configs[0])
        assert plan.flops(configs[0]) == {name: about["flops"] for name, about in worker.describe().items()}
