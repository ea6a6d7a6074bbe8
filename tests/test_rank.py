"""The command that tests whether rank explains accuracy: its figures, its files, resumption, and errors in one line."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import rank
from experiments.core import loading
from experiments.data.scenes import make_scene
from experiments.evaluation.worker import ModelWorker
from experiments.reports import html as html_report
from experiments.reports.tables import with_interval
from tests.commands import VISUAL, failure, save_checkpoint
from tokencarve_jax import Selection

SCENES, KEEPS = 3, (6, 3)
METHODS = ("tokencarve", "uniform")  # in the decoder and before it
LAYERS = 4
CELLS = [("vanilla", VISUAL), *((name, keep) for keep in KEEPS for name in METHODS)]


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


def broken(tokens, *, keep):
    """A method that leaves fewer tokens than it should."""
    return Selection(jnp.arange(keep - 1, dtype=jnp.int32))


def read(out):
    return json.loads((out / "results.json").read_text())


def test_files(whole, flags):
    names = {path.name for path in whole.iterdir()}
    assert names == {"measured.jsonl", "results.json", "table.md", "layers.csv", "accuracy.png", "layers.png"}
    for name in ("accuracy.png", "layers.png"):
        with Image.open(whole / name) as figure:
            assert len(figure.convert("RGB").getcolors(1 << 16)) > 20
    report, page = read(whole), html_report.render(whole)
    assert report["kind"] == "rank"
    assert report["command"] == ["python", "-m", "experiments.rank", *flags, f"--out={whole}"]
    for row in report["methods"]:
        assert with_interval(row["accuracy"]) in page
        assert f"{row['behind_cut']['visual']['effective_rank']:.1f}" in page


def test_figures_follow_from_the_journal(whole):
    report = read(whole)
    entries = [json.loads(line) for line in (whole / "measured.jsonl").read_text().splitlines()][1:]
    entries.sort(key=lambda entry: entry["indices"])
    assert [(row["method"], row["visual_tokens"]) for row in report["methods"]] == CELLS
    answers, vanilla = (
        np.array(texts)
        for texts in zip(*((one["answer"], one["predictions"][f"vanilla {VISUAL}"]) for one in report["samples"]))  # noqa: B905
    )
    for row in report["methods"]:
        name = f"{row['method']} {row['visual_tokens']}"
        own = [entry["found"][name] for entry in entries if name in entry["found"]]
        predictions = np.array([text for columns in own for text in columns["prediction"]])
        assert predictions.tolist() == [sample["predictions"][name] for sample in report["samples"]]
        assert row["accuracy"]["share"] == (predictions == answers).mean()
        assert row["same_answer"]["share"] == (predictions == vanilla).mean()
        for part in ("all", "visual"):
            ranks, entropy = (
                np.array([one[what] for columns in own for one in columns[part]]) for what in ("rank", "entropy")
            )
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
    tokens = checkpoint.llava.generate(
        inputs.input_ids, inputs.pixel_values, attention_mask=inputs.attention_mask, max_new_tokens=8, carve=6
    )
    assert checkpoint.decode(tokens) == [sample["predictions"]["tokencarve 6"]]


def test_csv_has_a_line_for_every_figure(whole):
    lines = iter(csv.DictReader((whole / "layers.csv").read_text().splitlines()))
    for row in read(whole)["methods"]:
        for part in ("all", "visual"):
            own = [next(lines) for _ in range(LAYERS - 1)]
            where = {(line["method"], line["visual_tokens"], line["tokens"], line["accuracy"]) for line in own}
            assert where == {(row["method"], str(row["visual_tokens"]), part, str(row["accuracy"]["share"]))}
            assert [float(line["effective_rank"]) for line in own] == row["layers"][part]["effective_rank"]
    assert not list(lines)


def test_interrupted_run_goes_on(flags, whole, tmp_path, monkeypatch, capsys):
    asked, original = [], ModelWorker.answer

    def answer(self, questions, indices, cells, **options):
        if len(asked) == 7:
            asked.append(None)
            raise KeyboardInterrupt
        asked.append((*cells, indices[0]))
        return original(self, questions, indices, cells, **options)

    monkeypatch.setattr(ModelWorker, "answer", answer)
    out = tmp_path / "out"
    assert rank.main([*flags, f"--out={out}"]) == 130
    assert not (out / "results.json").exists()
    assert rank.main([*flags, f"--out={out}"]) == 0
    asked.remove(None)
    assert len(asked) == len(set(asked)) == 2 * len(CELLS)
    for key in ("methods", "correlations", "samples"):
        assert read(out)[key] == read(whole)[key]
    for name in ("table.md", "layers.csv", "accuracy.png", "layers.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    err = failure(rank.main, [*flags[:-1], "--seed=2", f"--out={out}"], capsys)
    assert "other settings (seed); pass another --out, or --restart" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--keep", "6", "0.375"], "--keep 6 0.375: two of them leave the same number"),
        (["--keep", "1.0"], f"--keep 1.0 leaves all of the {VISUAL} visual tokens"),
        (["--keep", "17"], "norm, keep=17: "),
        (["--methods", "norm", "nonesuch"], "no method is named 'nonesuch'"),
        (["--methods", "tome", "--keep", "1"], "tome, keep=1: "),
        (["--methods", f"{__file__}:broken", "--keep", "3"], "broken: select must return indices of integers"),
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
