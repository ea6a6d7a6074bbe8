"""Question files as they are read, and what cannot be one."""

import json

import pytest

from experiments import eval as evaluation
from experiments.data import formats
from experiments.data.file_questions import FileQuestions
from experiments.data.question_images import path_inside
from experiments.data.questions import without
from models.errors import CommandError
from tests.commands import failure
from tests.question_files import POPE, flags, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("files"))


class TestSet:
    def test_batches_are_of_like_ones(self, folder):
        questions = FileQuestions(folder / "pope.jsonl", folder / "images")
        assert questions.batches(2) == [[3, 1], [0, 2], [4]]
        assert questions.batches(3) == [[3, 1, 0], [2], [4]]
        sample = questions.sample(1)
        assert (sample.id, sample.text, sample.answer, sample.group) == (2, POPE[1]["text"], None, 1)
        assert sample.images[0].size == (90, 30)
        assert questions.sample(4).images == ()

    def test_lengths_of_answers(self, folder):
        got = {
            name: formats.read(folder / name).max_new_tokens for name in ("pope.jsonl", "science.json", "mmbench.tsv")
        }
        assert got == {"pope.jsonl": 128, "science.json": 1024, "mmbench.tsv": 1024}

    def test_placeholders_within_placeholders(self, tmp_path):
        path = tmp_path / "q.jsonl"
        path.write_text(json.dumps({"question_id": 1, "text": "a<ima<image>ge>b"}))
        assert formats.read(path).rows[0].text == "ab"

    @pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/passwd", "..\\x.png", "a\0.png"])
    def test_paths_stay_inside(self, tmp_path, name):
        with pytest.raises(CommandError, match="not a path inside"):
            path_inside(tmp_path, name)


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (["--answers=noend"], "ends in .jsonl"),
            (["--questions=nowhere.jsonl"], "nowhere.jsonl does not exist"),
            (["--questions=nowhere.xlsx"], "ends in .jsonl, .json, .tsv"),
            (["--images=nowhere"], "nowhere: no such folder of images"),
            (["--image-aspect-ratio=crop", "--border=drop"], "'drop' is for padded images; here they are 'crop'"),
            (["--border=last", "--methods=tome", "--keep=8"], "'last': a cut in the vision tower"),
            (["--keep=17"], "keep=17"),
        ],
    )
    def test_one_line(self, folder, tmp_path, capsys, changes, said):
        argv = flags(folder, "pope.jsonl", tmp_path / "a.jsonl", *changes)
        assert said in failure(evaluation.main, argv, capsys)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (["--images=x"], "--images goes with --questions"),
            (["--questions=x.jsonl"], "--questions needs --answers"),
            (["--questions=x.jsonl", "--answers=y.jsonl", "--border=first"], "--border"),
        ],
    )
    def test_flags(self, capsys, argv, said):
        assert said in failure(evaluation.main, argv, capsys)

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("q.jsonl", b"\n\n", "has no questions"),
            ("q.json", b"{}", "expected a list"),
            ("q.json", b"[" * 100_000, "cannot be read as .json"),
            ("q.tsv", b"a\tb\n", "no column index"),
            ("q.tsv", b"\xff\xfe\n", "cannot be read as .tsv"),
        ],
    )
    def test_no_question_file(self, tmp_path, name, content, said):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CommandError, match=said):
            formats.read(tmp_path / name)

    def test_a_folder_is_needed(self, folder):
        with pytest.raises(CommandError, match="say in which folder"):
            FileQuestions(folder / "pope.jsonl")


def test_placeholders_in_placeholders_take_one_pass():
    """Taking them out one after the other would take minutes for this one."""
    assert without("<ima" * 100_000 + "ge>" * 100_000 + "what?<image>", "<image>") == "what?"
    assert without("a<im<image>age>b<imag", "<image>") == "ab<imag"
