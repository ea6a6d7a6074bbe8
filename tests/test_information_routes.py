"""The command that compares the routes: every matrix and route in its output, and bad input in one line."""

import json

import jax
import numpy as np
import pytest

from experiments.core import loading
from experiments.studies import hidden_states, information_routes, real_states
from tests.commands import VISUAL, failure, save_checkpoint

# As little as there can be: only the files that a test brings.
LITTLE = ["--limit=0", "--widths", "--tokens=8", "--time-width=12", "--repeats=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("routes") / "model")


def run(argv, out, capsys):
    assert information_routes.main([*argv, f"--out={out}"]) == 0
    return capsys.readouterr().out, json.loads((out / "results.json").read_text())


def test_a_models_hidden_states_and_random_matrices(folder, tmp_path, capsys):
    argv = [f"--model={folder}", "--limit=2", "--keep=5", "--widths", "6", "--seeds=1", *LITTLE[2:]]
    text, found = run(argv, tmp_path / "new" / "folder", capsys)
    kinds = {name: count for name, count in found["matrices"].items() if name.startswith("hidden")}
    assert kinds == {f"hidden states before layer {layer}": 2 for layer in (1, 2, 3)}
    for words in ("decay 1/j^2.0", "near-duplicates", "one token x 1000", "zero rows", "common mean"):
        assert any(name.startswith("D=6, ") and words in name for name in found["matrices"])
    routes = {"svd", "gram", "subspace", "norm", "thin SVD", "plain Gram"}
    assert set(found["seconds"]) == {"decay 1/j^0.5", "Gaussian"}
    for name, results in found["agreement"].items():
        assert name in text
        assert set(results) - {"jacobi"} == routes
        for what in ("same", "best"):
            assert all(0 <= figures[f"fewest_{what}"] <= figures[what] <= 1 for figures in results.values())
        if name.startswith("hidden"):
            assert results["svd"]["largest_error"] < 1e-4
    for taken in found["seconds"].values():
        assert set(taken) - {"jacobi"} == routes
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in taken.values())
    assert found["settings"]["keep"] == 5
    assert found["command"][-1].startswith("--out=")
    assert found["machine"]["backend"] == jax.default_backend()
    assert "jax" in found["versions"]


def test_the_hidden_states_are_those_that_the_model_computes(folder):
    checkpoint = loading.load(str(folder), dtype="float32")
    (first, second) = hidden_states.of_scenes(checkpoint, 2)
    assert len(first) == 3
    for (tokens, attention), (other, _) in zip(first, second, strict=True):
        assert tokens.shape == (VISUAL, 24)
        assert attention.shape == (VISUAL,)
        assert 0 < attention.sum() < 1
        assert np.abs(tokens - other).max() > 1e-3


def test_arrays_of_a_file_stand_in_the_table(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {"mine": rng.normal(size=(2, 3, 10, 4)).astype(np.float16), "yours": rng.normal(size=(9, 7))}
    np.savez(tmp_path / "states.npz", **arrays)
    text, found = run([f"--hidden={tmp_path / 'states.npz'}", *LITTLE], tmp_path, capsys)
    assert found["matrices"] == {"mine": 6, "yours": 1}
    assert "mine" in text
    assert found["agreement"]["mine"]["svd"]["same"] == 1


def test_real_models_need_their_packages_and_say_which(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = failure(information_routes.main, ["--states", *LITTLE, f"--out={tmp_path}"], capsys)
    assert real_states.INSTALL in said


def test_the_error_is_that_against_float64(monkeypatch):
    monkeypatch.setattr(information_routes, "calls", lambda: {"twice": lambda tokens: 2 * tokens[:, 0]})
    tokens = np.diag(np.arange(1.0, 7)) @ np.array([[1.0, 0, 0]] * 6)  # C is 1 to 6, its mean 3.5
    figures = information_routes.compare(tokens[:, [0, 1, 2]], np.ones(6), 3)["twice"]
    assert figures["largest_error"] == pytest.approx(6 / 3.5)
    assert figures["median_error"] == pytest.approx(1)
    assert figures["same"] == figures["best"] == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--widths", "12", "x"], "'x' is not a whole number"),
        (["--hidden=nowhere.npz"], "nowhere.npz: no such file"),
        (["--hidden={tmp}/text.npz"], "cannot be read as an .npz"),
        (["--hidden={tmp}/single.npy"], "cannot be read as an .npz"),
        (["--hidden={tmp}/objects.npz"], "cannot be read as an .npz"),
        (["--hidden={tmp}/bad.npz"], "'words' is int64 [3, 4]; expected [..., N, D]"),
        (["--hidden={tmp}/broken.npz"], "'x' holds NaN or infinity"),
        (["--hidden={tmp}/good.npz", "--keep=9"], "keep=9: keep as a count must be in 1..8"),
        (["--hidden={tmp}/good.npz", "--keep=8"], "keep=8 leaves all 8 tokens"),
        (["--model={tmp}/nowhere", "--limit=1"], "no such folder"),
        (["--out={tmp}/text.npz"], "there is a file of that name"),
    ],
)
def test_bad_input_gives_one_line(argv, words, tmp_path, capsys):
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "single.npy", np.ones((3, 4)))
    np.savez(tmp_path / "objects.npz", x=np.array([{}]))
    np.savez(tmp_path / "bad.npz", words=np.ones((3, 4), np.int64))
    np.savez(tmp_path / "broken.npz", x=np.array([[np.nan, 1]]))
    np.savez(tmp_path / "good.npz", x=np.ones((8, 2)))
    given = [flag.format(tmp=tmp_path) for flag in argv]
    assert words in failure(information_routes.main, [*LITTLE, f"--out={tmp_path / 'out'}", *given], capsys)
