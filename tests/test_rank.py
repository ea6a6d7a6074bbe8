"""The command that tests whether rank explains accuracy: its figures, its files, resumption, and errors in one line."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from experiments import rank
from experiments.attention_rank.run import Asker
from experiments.core import loading
from experiments.data.scenes import make_scene
from experiments.reports import html as html_report
from experiments.reports.tables import with_interval
from tests.commands import VISUAL, failure, save_checkpoint

SCENES, KEEPS = 3, (6, 3)
METHODS = ("tokencarve", "norm", "uniform", "random")
LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", layers=LAYERS)


@pytest.fixture(scope="module")
def flags(model):
    keeps = [str(keep) for keep in KEEPS]
    return [f"--model={model}", "--keep", *keeps, "--methods", *METHODS, f"--limit={SCENES}", "--seed=1"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("results") / "deeper" / "whole"
    assert rank.main([*flags, f"--out={out}"]) == 0
    return out


def read(out):
    return json.loads((out / "results.json").read_text())


def journal(out):
    return [json.loads(line) for line in (out / "measured.jsonl").read_text().splitlines()][1:]


def test_files(whole, flags):
    names = {path.name for path in whole.iterdir()}
    assert names == {"measured.jsonl", "results.json", "table.md", "layers.csv", "accuracy.png", "layers.png"}
    for name in ("accuracy.png", "layers.png"):
        with Image.open(whole / name) as figure:
            assert figure.height > 500
            assert len(figure.convert("RGB").getcolors(1 << 16)) > 20
    assert read(whole)["command"] == ["python", "-m", "experiments.rank", *flags, f"--out={whole}"]


def test_report(whole):
    page = html_report.render(whole)
    for row in read(whole)["methods"]:
        assert with_interval(row["accuracy"]) in page
        assert f"{row['behind_cut']['visual']['effective_rank']:.1f}" in page


def test_figures_follow_from_the_journal(whole):
    report, entries = read(whole), journal(whole)
    cases = [("vanilla", VISUAL), *((name, keep) for keep in KEEPS for name in METHODS)]
    assert [(row["method"], row["visual_tokens"]) for row in report["methods"]] == cases
    answers = np.array([sample["answer"] for sample in report["samples"]])
    for row in report["methods"]:
        where = row["method"], row["visual_tokens"]
        own = sorted(
            (entry for entry in entries if (entry["method"], entry["visual_tokens"]) == where), key=lambda e: e["batch"]
        )
        said = np.array([text for entry in own for text in entry["said"]])
        assert said.tolist() == [sample["said"][f"{where[0]} {where[1]}"] for sample in report["samples"]]
        assert row["accuracy"]["share"] == (said == answers).mean()
        vanilla = [sample["said"][f"vanilla {VISUAL}"] for sample in report["samples"]]
        assert row["same_answer"]["share"] == (said == vanilla).mean()
        for part in ("all", "visual"):
            ranks = np.array([layers for entry in own for layers in entry[part]["rank"]])
            entropy = np.array([layers for entry in own for layers in entry[part]["entropy"]])
            assert ranks.shape == (3 * SCENES, LAYERS - 1)
            np.testing.assert_allclose(row["layers"][part]["rank"], ranks.mean(0))
            np.testing.assert_allclose(row["layers"][part]["effective_rank"], np.exp(entropy).mean(0))
            np.testing.assert_allclose(row["behind_cut"][part]["entropy"], entropy[:, 2:].mean())
        limit = np.full(LAYERS - 1, row["visual_tokens"])
        if row["place"] == "decoder":
            limit[:2] = VISUAL
        assert (np.array(row["layers"]["visual"]["rank"]) <= limit).all()


def test_methods_at_a_layer_differ_from_vanilla_behind_the_cut_alone(whole):
    vanilla, *others = read(whole)["methods"]
    for row in others:
        got, want = (np.array(r["layers"]["all"]["entropy"]) for r in (row, vanilla))
        near = np.isclose(got, want, rtol=1e-5)
        assert near.tolist() == ([True, True, False] if row["place"] == "decoder" else [False] * 3)


def test_answers_are_those_of_generate(whole, model):
    checkpoint, sample = loading.load(str(model), dtype="float32"), read(whole)["samples"][-1]
    inputs = checkpoint.encode([[make_scene("test", SCENES - 1, 1, questions=3).image]], [sample["question"]])
    for name, keep in (("vanilla", None), ("tokencarve", 6)):
        tokens = checkpoint.llava.generate(
            inputs.input_ids, inputs.pixel_values, attention_mask=inputs.attention_mask, max_new_tokens=8, carve=keep
        )
        assert checkpoint.decode(tokens) == [sample["said"][f"{name} {keep or VISUAL}"]]


def test_csv_has_a_line_for_every_figure(whole):
    with (whole / "layers.csv").open() as file:
        lines = list(csv.DictReader(file))
    rows = read(whole)["methods"]
    assert len(lines) == len(rows) * 2 * (LAYERS - 1)
    for row in rows:
        for part in ("all", "visual"):
            own = [
                line
                for line in lines
                if (line["method"], line["visual_tokens"], line["tokens"])
                == (row["method"], str(row["visual_tokens"]), part)
            ]
            assert [float(line["effective_rank"]) for line in own] == row["layers"][part]["effective_rank"]
            assert {float(line["accuracy"]) for line in own} == {row["accuracy"]["share"]}


def test_interrupted_run_goes_on(flags, whole, tmp_path, monkeypatch, capsys):
    asked, original = [], Asker.ask

    def ask(self, case, prompt, indices):
        if len(asked) == 12:
            asked.append(None)
            raise KeyboardInterrupt
        asked.append((case.method, case.kept, indices[0]))
        return original(self, case, prompt, indices)

    monkeypatch.setattr(Asker, "ask", ask)
    out = tmp_path / "out"
    assert rank.main([*flags, f"--out={out}"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (out / "results.json").exists()
    with (out / "measured.jsonl").open("a") as file:
        file.write('{"batch": 1, "said": [')  # torn
    assert rank.main([*flags, f"--out={out}"]) == 0
    asked.remove(None)
    assert len(asked) == len(set(asked)) == 2 * (1 + len(METHODS) * len(KEEPS))
    for key in ("methods", "correlations", "samples"):
        assert read(out)[key] == read(whole)[key]
    for name in ("table.md", "layers.csv", "accuracy.png", "layers.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    capsys.readouterr()
    err = failure(rank.main, [*flags[:-1], "--seed=2", f"--out={out}"], capsys)
    assert "other settings (seed); pass another --out, or --restart" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--keep", "6", "0.375"], "--keep 6 0.375: two of them leave the same number"),
        (["--keep", "1.0"], f"--keep 1.0 leaves all of the {VISUAL} visual tokens"),
        (["--keep", "17"], "keep=17: "),
        (["--keep", "0"], "'0' is neither a fraction"),
        (["--methods", "norm", "nonesuch"], "no method is named 'nonesuch'"),
        (["--methods", "norm", "norm"], "two have one name"),
        (["--methods", "tome", "--keep", "1"], "tome cannot leave 1 visual tokens: "),
        (["--limit", "0"], "'0' is not a whole number"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(model, more, words, tmp_path, capsys):
    err = failure(rank.main, [f"--model={model}", f"--out={tmp_path / 'out'}", "--methods=norm", *more], capsys)
    assert words in err
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_layer_behind_the_cut(tmp_path, capsys):
    short = save_checkpoint(tmp_path / "short")
    err = failure(rank.main, [f"--model={short}", f"--out={tmp_path / 'out'}", "--keep=3"], capsys)
    assert "has 3 decoder layers; expected 4 or more" in err


def test_a_file_where_the_folder_should_be(model, tmp_path, capsys):
    (tmp_path / "file").touch()
    err = failure(rank.main, [f"--model={model}", f"--out={tmp_path / 'file'}"], capsys)
    assert "there is a file of that name" in err
