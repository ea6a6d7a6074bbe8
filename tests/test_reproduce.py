"""The paper's table, apart from lmms-eval: `.ci/lmms` runs it whole."""

import json
from pathlib import Path

import pytest
from PIL import Image

from experiments import reproduce
from experiments.core import cli
from experiments.core.config import PromptConfig
from experiments.data.formats import mmbench_question
from experiments.lmms import harness, prompts, reproduction, sets, tables
from experiments.lmms.tables import Column
from tests.commands import failure

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
