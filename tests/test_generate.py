"""One question about images, on the command line."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from experiments import generate
from experiments.core import cli, loading
from experiments.data.image_files import open_image
from experiments.data.scenes import make_scene
from tests.commands import DAMAGES, VISUAL, damage, failure, save_checkpoint
from tests.kills import processes

PROMPT = "--prompt=Where is the red circle?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", strategy="full")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "scene.png"
    Image.fromarray(make_scene("test", 0).image).resize((400, 330)).save(path)
    return path


def facts(out):
    return {line[:15].strip(): line[15:] for line in out.split("\n\n", 1)[1].splitlines()}


def test_the_shipped_model_says_that_it_knows_its_scenes_alone(model, image, tmp_path, capsys, monkeypatch):
    scene = tmp_path / "scene.png"
    Image.fromarray(make_scene("test", 0).image).save(scene)
    argv = [f"--model={model}", PROMPT, "--max-new-tokens=1"]
    assert generate.main([*argv, f"--image={image}"]) == 0
    assert capsys.readouterr().err == ""  # another model
    monkeypatch.setattr(cli, "SHIPPED", model)
    assert generate.main([*argv, f"--image={scene}"]) == 0
    assert capsys.readouterr().err == ""  # a scene
    assert generate.main([*argv, f"--image={scene}", f"--image={image}"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("note: the shipped model knows its own scenes alone")
    assert err.count("\n") == 1


def test_a_method_by_its_name_is_a_cut_where_it_is_meant_to_work(model, image, capsys):
    argv = [f"--model={model}", f"--image={image}", PROMPT, "--max-new-tokens=3"]
    said = []
    for carve in (["--keep=6", "--method=divprune"], ["--schedule", "divprune@input=6"]):
        assert generate.main([*argv, *carve]) == 0
        said.append(capsys.readouterr().out.split("load ")[0])
    assert said[0] == said[1]
    assert "-> 6" in said[0]
    assert "no method is named 'Divprune', perhaps 'divprune'" in failure(
        generate.main, [*argv, "--keep=6", "--method=Divprune"], capsys
    )
    assert "--method needs --keep" in failure(generate.main, [*argv, "--method=divprune"], capsys)


def test_answer_and_facts(model, image, tmp_path, capsys):
    """Two images, a class token each."""
    picture, visual = tmp_path / "deep" / "carved.jpg", 2 * (VISUAL + 1)
    argv = [f"--model={model}", f"--image={image}", f"--image={image}", PROMPT, "--keep=6", "--max-new-tokens=5"]
    assert generate.main([*argv, f"--picture={picture}"]) == 0
    out = capsys.readouterr().out
    shown = facts(out)
    checkpoint = loading.load(str(model), dtype="float32")
    pixels = Image.open(image)
    inputs = checkpoint.encode([[pixels, pixels]], [PROMPT.removeprefix("--prompt=")])
    tokens = checkpoint.llava.generate(
        inputs.input_ids, inputs.pixel_values, attention_mask=inputs.attention_mask, max_new_tokens=5, carve=6
    )
    length = inputs.input_ids.shape[1]
    assert out.startswith(checkpoint.decode(tokens)[0] + "\n\n")
    assert shown["visual tokens"] == f"{visual} -> 6"
    assert shown["sequence"] == f"{length} -> {length - visual + 6} tokens"
    slot = 3 * 2 * 12 * 4  # bytes: layers, keys and values, one head of 12, float32
    packed = 16 * -(-length // 16)  # up to the bucket
    before, after = (packed + 32) * slot / 1024, (packed + 32 - visual + 6) * slot / 1024
    assert shown["KV cache"] == f"{before:.3g} KiB -> {after:.3g} KiB, room for 32 new tokens included"
    assert shown["decode"].endswith(f", {tokens.shape[1]} tokens")
    for name in ("load", "compile", "prefill", "decode"):
        assert re.match(r"[\d.]+ m?s", shown[name])
    assert not shown["decode"].startswith("0 ")
    assert np.asarray(Image.open(picture)).std() > 20
    assert [path.name for path in picture.parent.iterdir()] == [picture.name]


def test_the_readmes_question(tmp_path, capsys):
    """The shipped model answers it, about a scene that it was not trained on."""
    scene = make_scene("test", 400)
    shown = processes.ROOT / "experiments" / "gallery" / "scene.png"
    np.testing.assert_array_equal(np.asarray(Image.open(shown)), scene.image)
    command = re.search(
        r"^python -m experiments.generate (.*)$", (processes.ROOT / "README.md").read_text(), re.MULTILINE
    )[1]
    argv = [word.replace("=kept.png", f"={tmp_path}/kept.png") for word in shlex.split(command)]
    (asked,) = (word.removeprefix("--prompt=") for word in argv if word.startswith("--prompt="))
    assert generate.main(argv) == 0
    (answer,) = (question.answer for question in scene.questions if question.text == asked)
    assert capsys.readouterr().out.startswith(f"{answer}\n\n")
    assert (tmp_path / "kept.png").exists()


def test_a_revision_is_the_hubs_to_find(model, image, monkeypatch, capsys):
    asked = []

    def find(source, *, revision):
        asked.append((source, revision))
        return model

    monkeypatch.setattr(loading, "find_checkpoint", find)
    argv = ["--model=some/model", "--revision=v2", f"--image={image}", PROMPT, "--max-new-tokens=1"]
    assert generate.main(argv) == 0
    assert asked == [("some/model", "v2")]


def test_without_keep_nothing_is_carved(model, image, capsys):
    assert generate.main([f"--model={model}", f"--image={image}", PROMPT, "--max-new-tokens=2"]) == 0
    shown = facts(capsys.readouterr().out)
    assert shown["visual tokens"] == str(VISUAL + 1)
    assert "->" not in shown["KV cache"] + shown["sequence"]


class TestBadInput:
    def test_keep_more_than_there_are(self, model, image, capsys):
        line = failure(generate.main, [f"--model={model}", f"--image={image}", PROMPT, "--keep=18"], capsys)
        assert "must be in 1..17" in line

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "no such file"),
            (b"", "unknown format"),
            ("damaged", "cannot be read (OSError: "),
            ("folder", "is a folder, not a file"),
        ],
    )
    def test_image(self, image, tmp_path, capsys, content, reason):
        path = tmp_path / "image.png"
        if content == "folder":
            path.mkdir()
        elif content == "damaged":
            path.write_bytes(image.read_bytes().replace(b"IDAT", b"IDAT\xff\xff\xff", 1))
        elif content is not None:
            path.write_bytes(content)
        line = failure(generate.main, [f"--image={path}", PROMPT, "--picture=x.png", "--keep=3"], capsys)
        assert f"error: {path} " in line
        assert reason in line

    def test_damaged_checkpoint(self, model, image, tmp_path, capsys):
        how, picture = "missing weight", tmp_path / "new" / "x.png"
        folder = damage(model, tmp_path / "damaged", how)
        argv = [f"--model={folder}", f"--image={image}", PROMPT, "--keep=3", f"--picture={picture}"]
        assert DAMAGES[how] in failure(generate.main, argv, capsys)
        assert not picture.parent.exists()

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--picture=x.png"], "pass --keep too"),
            (["--picture=x.txt", "--keep=3"], "ends in .png or .jpg"),
            (["--picture=x", "--keep=3"], "ends in .png or .jpg"),
            (["--keep=1.5"], "--keep: '1.5' is neither a fraction"),
            (["--max-new-tokens=0"], "'0' is not a whole number of at least 1"),
        ],
    )
    def test_other_flags(self, image, capsys, flags, words):
        assert words in failure(generate.main, [f"--image={image}", PROMPT, *flags], capsys)

    def test_image_and_prompt_are_asked_for(self, capsys):
        assert "--image" in failure(generate.main, [PROMPT], capsys)
        assert "--prompt" in failure(generate.main, ["--image=x.png"], capsys)


def test_images_are_turned_upright(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held on its side
    Image.new("RGB", (40, 20), "red").save(path, exif=exif)
    assert open_image(path).size == (20, 40)
