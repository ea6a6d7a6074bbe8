"""`--clip`: cdpruner in commands, told how relevant visual tokens are to the question."""

import io
import json

import pytest
from PIL import Image

from experiments import eval as evaluation
from experiments import generate
from experiments.core import loading, methods
from experiments.data.scene_questions import SceneQuestions
from experiments.data.scenes import make_scene
from tests.clips import make_clip
from tests.commands import SIDE, VISUAL, failure, save_checkpoint

KEEP, MAX_NEW_TOKENS = 3, SceneQuestions.max_new_tokens
TOWER = {  # of `save_checkpoint`; what it leaves to transformers' defaults stands for itself
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
}
NEEDY = """
from tokencarve_jax import Compressor, Selection
from tokencarve_jax.scores.ranking import best, tiers


def select(tokens, *, keep, relevance):
    return Selection(best(relevance, keep, tiers(tokens.valid, tokens.values, relevance)))


needy = Compressor("needy", select, at="input")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    save_checkpoint(path / "model")
    make_clip(path / "clip", vision=TOWER)
    make_clip(path / "other", vision=TOWER, seed=9)
    make_clip(path / "wider", vision=TOWER | {"hidden_size": 20})
    (path / "needy.py").write_text(NEEDY)
    Image.fromarray(make_scene("test", 0).image).save(path / "scene.png")
    return path


@pytest.fixture(scope="module")
def flags(folder):
    methods = ["--methods", "tokencarve", "cdpruner"]
    return [f"--model={folder / 'model'}", f"--keep={KEEP}", "--limit=2", "--batch-size=4", "--seed=1", *methods]


@pytest.fixture(scope="module")
def told(folder, flags):
    out = folder / "told"
    assert evaluation.main([*flags, f"--clip={folder / 'clip'}", f"--out={out}"]) == 0
    return json.loads((out / "results.json").read_text())


def answer(checkpoint, image, question, name, max_new_tokens):
    """Asked alone, of the library."""
    inputs = checkpoint.encode([[image]], [question])
    tokens = checkpoint.llava.generate(
        inputs.input_ids,
        inputs.pixel_values,
        attention_mask=inputs.attention_mask,
        relevance=None if checkpoint.clip is None else checkpoint.clip([question]),
        max_new_tokens=max_new_tokens,
        carve=methods.named([name])[0].schedule(KEEP, num_layers=3, num_visual=VISUAL),
    )
    return checkpoint.decode(tokens)[0]


def test_answers_are_those_of_the_library(folder, told):
    checkpoint = loading.load(str(folder / "model"), dtype="float32", clip=str(folder / "clip"))
    deaf = loading.load(str(folder / "model"), dtype="float32")
    differ = 0
    for sample in told["samples"]:
        image, question = make_scene("test", sample["scene"], 1).image, sample["question"]
        want = answer(checkpoint, image, question, "cdpruner", MAX_NEW_TOKENS)
        assert sample["predictions"]["cdpruner"] == want
        differ += want != answer(deaf, image, question, "cdpruner", MAX_NEW_TOKENS)
    assert differ > 1


def test_another_clip_is_another_run(folder, flags, told, capsys):
    assert told["settings"]["clip_sha256"] == loading.checksum(folder / "clip")
    for more in ([], [f"--clip={folder / 'other'}"]):
        assert "clip_sha256" in failure(evaluation.main, [*flags, *more, f"--out={folder / 'told'}"], capsys)
    assert evaluation.main([*flags, f"--clip={folder / 'clip'}", f"--out={folder / 'told'}"]) == 0
    capsys.readouterr()


def test_generate(folder, capsys, monkeypatch):
    """One question, with its relevance, and the same line in a conversation."""
    question = "Where is the red circle?"
    argv = [f"--model={folder / 'model'}", f"--image={folder / 'scene.png'}", "--max-new-tokens=7"]
    argv = [*argv, "--schedule", f"cdpruner@input={KEEP}", f"--clip={folder / 'clip'}"]
    checkpoint = loading.load(str(folder / "model"), dtype="float32", clip=str(folder / "clip"))
    want = answer(checkpoint, Image.open(folder / "scene.png"), question, "cdpruner", 7)
    assert generate.main([*argv, f"--prompt={question}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(want + "\n\n")
    assert f"{VISUAL} -> {KEEP}" in out
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n"))
    assert generate.main([*argv, "--chat"]) == 0
    assert capsys.readouterr().out == want + "\n"


def test_methods_in_the_tower_have_a_budget_for_each_image(folder, capsys):
    image = f"--image={folder / 'scene.png'}"
    argv = [f"--model={folder / 'model'}", image, image, "--schedule", "tome@tower=9", "--prompt=Where?"]
    assert generate.main([*argv, f"--picture={folder / 'both.png'}"]) == 0
    assert f"{2 * VISUAL} -> 18\n" in capsys.readouterr().out


def test_errors(folder, flags, capsys):
    asked = [f"--model={folder / 'model'}", f"--image={folder / 'scene.png'}", "--prompt=x"]
    method = f"{folder / 'needy.py'}:needy"
    for main, argv in (
        (evaluation.main, [*flags[:-2], method, f"--out={folder / 'none'}"]),
        (generate.main, [*asked, "--schedule", f"{method}@input={KEEP}"]),
    ):
        assert "needy needs to know how relevant tokens are to the question; pass --clip too" in failure(
            main, argv, capsys
        )
    assert "CLIP's has hidden_size 20, and the model's hidden_size 16" in failure(
        generate.main, [*asked, f"--clip={folder / 'wider'}"], capsys
    )
    assert "nowhere: no such folder" in failure(generate.main, [*asked, f"--clip={folder / 'nowhere'}"], capsys)
    assert "has model_type 'llava'; relevance needs a 'clip'" in failure(
        generate.main, [*asked, f"--clip={folder / 'model'}"], capsys
    )
