"""The comparison as a command: what it writes, and that nothing is lost or asked twice."""

import csv
import json
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from experiments import compare
from experiments.compare import SHORT_METHODS
from experiments.comparison.cells import COMPUTE, DOWNSAMPLED, default_methods
from experiments.core import loading
from experiments.core.results import format_seconds
from experiments.data.scene_questions import SceneQuestions
from experiments.data.scenes import make_scene
from experiments.evaluation.worker import ModelWorker
from experiments.metrics.summary import wilson
from experiments.reports import html as html_report
from experiments.reports.tables import with_interval
from models.engine import embed
from models.errors import CommandError
from tests.commands import VISUAL, answer_alone, failure, save_checkpoint
from tests.test_own_method import METHOD
from tokencarve_jax import plan

SCENES, KEEP = 3, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def flags(model):
    return [
        f"--model={model}",
        f"--limit={SCENES}",
        "--batch-size=4",
        "--repeats=2",
        "--seed=1",
        f"--keep={KEEP}",
    ]


METHODS = ["--methods", "fastv", "uniform", "random", "downsampled"]
SCHEDULE = "uniform@input=9,kept fastv@2=4,full"


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "whole"
    assert compare.main([*flags, f"--out={out}", *METHODS, "--schedule", *SCHEDULE.split()]) == 0
    return out


def read(out):
    return json.loads((out / "results.json").read_text())


def without_times(report):
    rows = [
        {name: value for name, value in row.items() if name not in ("prefill_s", "own_s")} for row in report["rows"]
    ]
    return rows, report["samples"]


class TestCommand:
    def test_answers_are_those_of_the_model_asked_alone(self, whole, model):
        checkpoint = loading.load(str(model), dtype="float32")
        report = read(whole)
        keys = {
            row["method"]: row["cell"]
            for row in report["rows"]
            if row["budget"] in (None, KEEP) and row["basis"] != COMPUTE
        }
        for sample in (report["samples"][1], report["samples"][-1]):
            image = make_scene("test", sample["scene"], 1).image
            for name, carve in (
                ("vanilla", None),
                ("tokencarve", KEEP),
                ("fastv", ((2, "fastv", KEEP),)),
                ("uniform", (("input", "uniform", KEEP),)),
            ):
                assert answer_alone(checkpoint, image, sample["question"], carve) == sample["predictions"][keys[name]]

    def test_rows_follow_from_samples(self, whole):
        report = read(whole)
        samples = report["samples"]
        assert [sample["sample"] for sample in samples] == list(range(3 * SCENES))
        assert {row["method"] for row in report["rows"]} == {"vanilla", "tokencarve", *METHODS[1:], SCHEDULE}
        assert len({tuple(s["predictions"][row["cell"]] for s in samples) for row in report["rows"]}) > 4
        reference = {row["budget"]: row["cell"] for row in report["rows"] if row["method"] == "tokencarve"}
        for row in report["rows"]:
            right, vanilla = (
                np.array([s["predictions"][key] == s["answer"] for s in samples]) for key in (row["cell"], "vanilla")
            )
            assert row["accuracy"]["overall"]["share"] == right.mean()
            assert (row["accuracy"]["overall"]["low"], row["accuracy"]["overall"]["high"]) == wilson(
                right.sum(), len(right)
            )
            assert row["to_vanilla"][0] == pytest.approx(right.mean() - vanilla.mean())
            assert row["same_answer"] == np.mean(
                [s["predictions"][row["cell"]] == s["predictions"]["vanilla"] for s in samples]
            )
            if row["budget"]:
                carved = np.array([s["predictions"][reference[row["budget"]]] == s["answer"] for s in samples])
                assert row["to_reference"][0] == pytest.approx(right.mean() - carved.mean())

    def test_what_it_costs(self, whole, model):
        rows = read(whole)["rows"]
        config = loading.load(str(model), dtype="float32").llava.config
        for row in rows:
            layers = row["average"] * config.text.num_layers  # slots of the bucket of 32, less what is cut
            slots = 32 * config.text.num_layers
            if row["method"] in ("uniform", SCHEDULE):  # what each layer sees is what it holds
                slots -= config.text.num_layers * VISUAL - layers
            elif row["basis"] is not None and row["method"] != "downsampled":  # earlier layers are gathered too
                slots -= config.text.num_layers * (VISUAL - row["tokens"])
            assert row["cache_bytes"] == 2 * 12 * 4 * slots, row["cell"]
            assert 0.5 < row["flops"] / row["xla_flops"] <= 1  # widths of 24: much is not in the products
            assert row["prefill_s"] > 0
            assert (row["own_s"] > 1e-5) == (row["method"] not in ("vanilla", "downsampled"))
        assert rows[0]["kl_max"] == 0
        assert [row["same_first_token"] for row in rows if row["method"] == "vanilla"] == [1]
        assert min(row["same_first_token"] for row in rows) < 1
        assert all(row["kl_max"] >= row["kl_mean"] > 0 for row in rows[1:])

    def test_files_say_the_same(self, whole):
        rows = read(whole)["rows"]
        with (whole / "table.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert len(table) == len(rows)
        for line, row in zip(table, rows, strict=True):
            assert line["method"] == row["method"]
            assert float(line["accuracy.overall.share"]) == row["accuracy"]["overall"]["share"]
            assert float(line["to_vanilla.value"]) == row["to_vanilla"][0]
        text = (whole / "table.md").read_text()
        assert text.count("\n| vanilla ") == 3  # equal count, equal compute, as given
        assert Image.open(whole / "accuracy.png").size == (1500, 900)

    def test_carve_maps_are_those_of_the_answers(self, whole, model):
        report, checkpoint = read(whole), loading.load(str(model), dtype="float32")
        rows = {row["cell"]: row for row in report["rows"] if not row["why_not"]}
        records = {record["sample"]: record for record in report["gallery"]}
        assert sorted(records) == list(range(3 * SCENES))
        questions = SceneQuestions(SCENES, 1)
        samples = [questions.sample(index) for index in range(4)]
        inputs = checkpoint.encode([one.images for one in samples], [one.text for one in samples])
        prompt = checkpoint.llava.prompt(**inputs.named, bucket=loading.BUCKET)
        for key, row in rows.items():
            for record in records.values():
                (one,) = (one for one in record["maps"] if one["cell"] == key)
                assert len(one["kept"]) == row["tokens"]
            name = row["method"]
            if name in ("random", "uniform"):
                place = 2 if name == "random" else "input"
                cuts = checkpoint.llava.prefill(prompt, carve=((place, name, row["tokens"]),), seed=1_000_003).cuts
                for index in range(4):
                    (one,) = (one for one in records[index]["maps"] if one["cell"] == key)
                    assert one["kept"] == np.asarray(cuts[0].indices[index]).tolist()
        fused = records[0]["ranks"]["tokencarve"]["fused"]
        passed = {i for i, rank in enumerate(fused) if rank <= plan(VISUAL, KEEP).survivors}
        (own,) = (key for key, row in rows.items() if row["method"] == "tokencarve" and row["tokens"] == KEEP)
        (one,) = (one for one in records[0]["maps"] if one["cell"] == own)
        assert passed == {*one["kept"], *dict(one["merged"])}

    def test_report(self, whole):
        page, report = (whole / "report.html").read_text(), read(whole)
        assert page == html_report.render(whole)
        for row in report["rows"]:
            assert row["method"] in page
            assert with_interval(row["accuracy"]["overall"]) in page
            assert format_seconds(row["prefill_s"]) in page

    def test_a_torn_run_goes_on_and_another_method_costs_its_own_work_alone(self, whole, flags, tmp_path, monkeypatch):
        lines = (whole / "measured.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "measured.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
        asked, towers, original = [], [], ModelWorker.answer

        def answer(self, questions, indices, cells, **options):
            asked.append((indices, cells))
            with mock.patch.object(embed, "see", side_effect=embed.see) as see:
                entry = original(self, questions, indices, cells, **options)
            towers.append(see.call_count)
            return entry

        monkeypatch.setattr(ModelWorker, "answer", answer)
        assert compare.main([*flags, f"--out={tmp_path}", *METHODS, "--schedule", *SCHEDULE.split()]) == 0
        assert [list(indices) for indices, _ in asked] == [[8]]
        assert len(asked[0][1]) > 6
        assert towers == [2]  # the image as it is and down-sampled, whatever is cut behind the tower
        assert without_times(read(tmp_path)) == without_times(read(whole))
        # As where there are more cells than a process can hold the programs of.
        forgotten, forget = [], ModelWorker.forget
        monkeypatch.setattr(ModelWorker, "forget", lambda self: (forgotten.append(True), forget(self)))
        monkeypatch.setattr("experiments.evaluation.worker.MOST_CELLS", 4)
        monkeypatch.setattr("experiments.comparison.run.GROUP", 3)
        argv = [*flags, f"--out={tmp_path / 'groups'}", *METHODS, "--schedule", *SCHEDULE.split()]
        assert compare.main(argv) == 0
        assert len(forgotten) == 5  # between three groups that are asked, and before each of three that are timed
        assert without_times(read(tmp_path / "groups")) == without_times(read(whole))
        asked.clear()
        assert compare.main([*flags, f"--out={tmp_path}", *METHODS, "norm"]) == 0
        assert len(asked) == 3
        assert {key.split(" ")[0] for _, keys in asked for key in keys} == {"norm"}
        assert [row["method"] for row in read(tmp_path)["rows"]].count("norm") == 2

    def test_the_protocol_goes_on_from_the_table(self, whole, flags, tmp_path, monkeypatch, capsys):
        (tmp_path / "measured.jsonl").write_bytes((whole / "measured.jsonl").read_bytes())
        asked, original = [], ModelWorker.answer

        def answer(self, questions, indices, cells, **options):
            asked.extend(cells)
            return original(self, questions, indices, cells, **options)

        monkeypatch.setattr(ModelWorker, "answer", answer)
        assert compare.main([*flags, f"--out={tmp_path}", *METHODS, "--protocol"]) == 0
        inside = {(f"{name} ({name}", "1") for name in ("tokencarve", "fastv", "random")}
        forms = {(f"uniform,{form} (uniform", "input") for form in ("kept", "median")}
        new = {(key.split("@")[0], key.split("@")[1].split("=")[0]) for key in asked}
        assert new == inside | forms | {("random (random", "2")}
        found = read(tmp_path)
        judged = found["protocol"]
        names = {"vanilla", "tokencarve", *METHODS[1:]}
        assert {row["method"] for row in judged["turns"]} == names
        assert [list(row["forms"]) for row in judged["positions"]] == [["renumbered", "kept", "median"]]
        assert all(row["second"]["of"] == 3 * SCENES for row in judged["turns"])
        assert {row["layer"] for row in judged["layers"]} == {1, 2}
        assert "A second question" in capsys.readouterr().out
        assert "A second question" in (tmp_path / "report.html").read_text()
        asked.clear()
        lines = (tmp_path / "measured.jsonl").read_bytes()
        assert compare.main([*flags, f"--out={tmp_path}", *METHODS, "--protocol"]) == 0
        assert not asked
        assert (tmp_path / "measured.jsonl").read_bytes() == lines  # nothing is asked twice, second questions included

    @pytest.mark.parametrize(
        ("argv", "rows"),
        [
            (["--protocol", "--limit=40"], {"tokencarve", *SHORT_METHODS, "random", DOWNSAMPLED}),
            (["--protocol", "--limit=40", "--methods", "norm"], {"tokencarve", "norm", "random", DOWNSAMPLED}),
            (["--protocol", "--limit=41"], {*default_methods(clip=False)}),
            (["--limit=40"], {*default_methods(clip=False)}),
        ],
    )
    def test_the_protocols_short_form_is_for_few_scenes_and_for_what_is_not_said(self, argv, rows, monkeypatch):
        monkeypatch.setattr(compare, "compare", mock.Mock(side_effect=CommandError("seen")))
        assert compare.main(argv) == 1
        (config,) = compare.compare.call_args.args
        comparison, short = config.worker.comparison, "--protocol" in argv and "--limit=40" in argv
        names = {method.name for method in comparison.methods} | ({DOWNSAMPLED} if comparison.downsampled else set())
        assert names == rows
        assert (comparison.keeps, config.rounds) == (((64,), 3) if short else ((128, 64), 9))

    def test_a_method_of_ones_own(self, flags, tmp_path):
        assert len(METHOD.splitlines()) <= 25
        file, out = tmp_path / "mine.py", tmp_path / "out"
        file.write_text(METHOD)
        argv = [*flags, f"--out={out}", "--methods", f"{file}:ODD"]
        assert compare.main(argv) == 0
        before = {row["cell"] for row in read(out)["rows"] if row["method"] == "odd-ones"}
        file.write_text(METHOD.replace("distance * query", "-distance * query"))
        assert compare.main(argv) == 0
        after = {row["cell"] for row in read(out)["rows"] if row["method"] == "odd-ones"}
        assert before
        assert not before & after  # what an edited file does is measured anew


def test_questions_of_a_file(model, tmp_path, capsys):
    """With answers, without, and rows that cannot be asked."""
    Image.fromarray(make_scene("test", 0).image).save(tmp_path / "scene.png")
    lines = [{"question_id": i, "image": "scene.png", "text": f"Where is the {word}?"} for i, word in enumerate("abc")]
    lines.append({"question_id": 3, "image": "../scene.png", "text": "Where?"})
    lines.append({"question_id": 4, "text": "No image?"})
    file, out = tmp_path / "questions.jsonl", tmp_path / "out"
    argv = [f"--model={model}", f"--keep={KEEP}", "--batch-size=2", "--repeats=1", "--methods", "uniform"]
    argv += [f"--questions={file}", f"--images={tmp_path}", f"--out={out}", "--max-new-tokens=4"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare.main(argv) == 1
    printed = capsys.readouterr()
    assert "1 questions could not be asked" in printed.err
    assert "order of agreement with vanilla" in printed.out
    report = read(out)
    assert [sample["id"] for sample in report["samples"]] == [0, 1, 2, 4]
    assert [failed["sample"] for failed in report["failed"]] == [3]
    assert report["settings"]["image_aspect_ratio"] == "pad"
    said = report["samples"][1]["predictions"]["vanilla"]
    lines = [line | {"answer": said.upper() + "."} for line in lines[:3]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare.main([*argv, "--restart"]) == 0
    vanilla = read(out)["rows"][0]
    assert vanilla["accuracy"]["overall"]["of"] == 3
    assert vanilla["accuracy"]["overall"]["right"] >= 1
    assert set(vanilla["accuracy"]) == {"overall"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--methods", "nothing"], "no method is named 'nothing'"),
        (["--keep", "16"], "keeps all 16"),
        (["--keep", "0"], "'0' is neither"),
        (["--repeats=0"], "'0' is not a whole number"),
        (["--methods", "nowhere.py:it"], "no file nowhere.py"),
        (["--images=."], "--images goes with --questions"),
        (["--schedule", "fastv@9=4"], "an integer from 1 to 2"),
        (["--schedule", "fastv@two=4"], "expected METHOD@PLACE=KEEP"),
    ],
)
def test_errors_are_one_line(flags, more, says, tmp_path, capsys):
    assert says in failure(compare.main, [*flags, f"--out={tmp_path / 'out'}", *more], capsys)
