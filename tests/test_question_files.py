"""LLaVA's question files in, answers in LLaVA's form out, and nothing lost on the way."""

import json

import pytest
from PIL import Image

from experiments import eval as evaluation
from experiments.core import cli, loading
from experiments.data.ahead import Ahead
from experiments.evaluation import files
from experiments.evaluation.worker import ModelWorker
from tests.commands import failure
from tests.question_files import KEEP, POPE, SUFFIX, SYSTEM, flags, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An undisturbed run on the .jsonl."""
    out = tmp_path_factory.mktemp("whole") / "deeper" / "pope.jsonl"
    assert evaluation.main(flags(folder, "pope.jsonl", out)) == 0
    return out


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(out, method):
    return lines(out.with_name(f"{out.stem}-{method}{out.suffix}"))


class TestAnswers:
    def test_jsonl(self, whole):
        for method, model_id in (("vanilla", "model"), ("tokencarve", f"model-tokencarve-{KEEP}")):
            got = answers(whole, method)
            assert [list(line) for line in got] == [
                ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
            ] * len(POPE)
            assert [line["question_id"] for line in got] == [row["question_id"] for row in POPE]
            assert [line["prompt"] for line in got] == [row["text"] for row in POPE]
            assert {line["model_id"] for line in got} == {model_id}
            assert all(line["metadata"] == {} for line in got)
        ids = [line["answer_id"] for method in ("vanilla", "tokencarve") for line in answers(whole, method)]
        assert len(set(ids)) == 2 * len(POPE)

    def test_science(self, folder, tmp_path):
        out = tmp_path / "science.jsonl"
        assert evaluation.main(flags(folder, "science.json", out)) == 0
        got = answers(out, "vanilla")
        assert [line["question_id"] for line in got] == ["4", "5"]
        assert [line["prompt"] for line in got] == [
            f"<image>\nWhere?\nA. left\nB. top\n{SUFFIX}",
            f"What?\nA. left\n{SUFFIX}",
        ]

    def test_mmbench(self, folder, tmp_path):
        out = tmp_path / "mmbench.jsonl"
        assert evaluation.main(flags(folder, "mmbench.tsv", out)) == 0
        got = answers(out, "tokencarve")
        fields = [
            "question_id",
            "round_id",
            "prompt",
            "text",
            "options",
            "option_char",
            "answer_id",
            "model_id",
            "metadata",
        ]
        assert [list(line) for line in got] == [fields] * 2
        assert [(line["question_id"], line["round_id"]) for line in got] == [(241, 0), (252, 0)]
        assert got[0]["prompt"] == "Where is\tit?\nA. left\nB. right"
        assert got[1]["prompt"] == 'Look.\nWell.\nIs "it" there?\nA. yes\nB. no\nC. A. maybe'
        assert got[1]["options"] == ["yes", "no", "A. maybe"]
        assert got[0]["option_char"] == ["A", "B"]
        report = json.loads((tmp_path / "mmbench" / "results.json").read_text())
        assert report["settings"]["max_new_tokens"] == 6
        assert report["methods"][0]["accuracy"]["of"] == 2
        assert "of 2 questions right" in (tmp_path / "mmbench" / "report.html").read_text()

    def test_they_are_those_of_the_model_asked_alone(self, folder, whole):
        """With LLaVA's prompt, and images that are padded."""
        checkpoint = loading.load(str(folder / "model"), dtype="float32", image_aspect_ratio="pad")
        said = set()
        for index in (1, 3, 4):
            row = POPE[index]
            images = [Image.open(folder / "images" / row["image"])] if "image" in row else []
            text = f"{SYSTEM} USER: {'<image>' + chr(10) if images else ''}{row['text']} ASSISTANT:"
            got = checkpoint.processor(images=images or None, text=[text], return_tensors="np")
            for method, carve in (("vanilla", None), ("tokencarve", KEEP)):
                tokens = checkpoint.llava.generate(**got, max_new_tokens=6, carve=carve)
                (want,) = checkpoint.decode(tokens)
                assert answers(whole, method)[index]["text"] == want
                said.add(want)
        assert len(said) > 3

    def test_settings_are_on_record(self, folder, whole, tmp_path):
        report = json.loads((whole.with_suffix("") / "results.json").read_text())
        settings = report["settings"]
        assert (settings["image_aspect_ratio"], settings["border"]) == ("pad", "keep")
        assert settings["conversation"] == "vicuna_v1"
        assert report["methods"][1]["accuracy"] is None
        page = (whole.with_suffix("") / "report.html").read_text()
        assert "No right answers are known" in page
        assert f"{100 * report['methods'][1]['same_answer']:.1f} %" in page
        out = tmp_path / "pope.jsonl"
        more = ["--image-aspect-ratio=checkpoint", "--conv-mode=checkpoint", "--limit=2"]
        assert evaluation.main(flags(folder, "pope.jsonl", out, *more)) == 0
        settings = json.loads((tmp_path / "pope" / "results.json").read_text())["settings"]
        assert (settings["image_aspect_ratio"], settings["rows"]) == ("crop", 2)
        assert [a["text"] for a in answers(out, "vanilla")] != [a["text"] for a in answers(whole, "vanilla")][:2]

    def test_the_shipped_model_says_that_it_knows_its_scenes_alone(self, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(cli, "SHIPPED", folder / "model")
        for name, notes in (("pope.jsonl", 1), ("text.jsonl", 0)):
            (folder / "text.jsonl").write_text('{"question_id": 5, "text": "What is it?"}\n')
            assert evaluation.main(flags(folder, name, tmp_path / name, "--limit=1", "--no-report")) == 0
            assert capsys.readouterr().err.count("note: the shipped model knows") == notes

    def test_border(self, folder, whole, tmp_path):
        """What `last` and `drop` do to the answers; that they are right is tested elsewhere."""
        texts = {}
        for how in ("last", "drop"):
            out = tmp_path / f"{how}.jsonl"
            assert evaluation.main(flags(folder, "pope.jsonl", out, f"--border={how}")) == 0
            texts[how] = {m: [a["text"] for a in answers(out, m)] for m in ("vanilla", "tokencarve")}
        kept = {m: [a["text"] for a in answers(whole, m)] for m in ("vanilla", "tokencarve")}
        assert texts["last"]["vanilla"] == kept["vanilla"]
        assert texts["drop"]["vanilla"] != kept["vanilla"]
        assert texts["last"]["tokencarve"] != kept["tokencarve"]

    def test_one_that_cannot_be_encoded(self, folder, whole, tmp_path, monkeypatch, capsys):
        """What a processor may refuse besides all that is looked for; its neighbour in the batch is answered."""
        original = loading.Checkpoint.encode_texts

        def encode_texts(self, images, texts, **options):
            if any("red circle" in text for text in texts):
                raise ValueError("no red circles")
            return original(self, images, texts, **options)

        monkeypatch.setattr(loading.Checkpoint, "encode_texts", encode_texts)
        assert evaluation.main(flags(folder, "pope.jsonl", tmp_path / "a.jsonl")) == 1
        assert "1 questions could not be asked" in capsys.readouterr().err
        (failed,) = json.loads((tmp_path / "a" / "results.json").read_text())["failed"]
        assert (failed["line"], failed["question_id"], failed["error"]) == (2, 2, "ValueError: no red circles")
        want = answers(whole, "tokencarve")
        assert answers(tmp_path / "a.jsonl", "tokencarve") == [want[0], *want[2:]]

    def test_known_answers_are_scored(self, folder, whole, tmp_path):
        said = [line["text"] for line in answers(whole, "vanilla")]
        known = [f" {said[0].upper()}. ", "never", said[2], None, None]
        rows = [row | ({} if right is None else {"answer": right}) for row, right in zip(POPE, known, strict=True)]
        (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
        argv = flags(folder, "pope.jsonl", tmp_path / "a.jsonl", f"--questions={tmp_path / 'q.jsonl'}")
        assert evaluation.main(argv) == 0
        row = json.loads((tmp_path / "a" / "results.json").read_text())["methods"][0]
        assert (row["accuracy"]["right"], row["accuracy"]["of"]) == (2, 3)


class TestResume:
    def test_same_files_after_an_interruption(self, folder, whole, tmp_path, monkeypatch):
        asked, original = [], ModelWorker.answer

        def answer(self, questions, indices, *args, **options):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(list(indices))
            return original(self, questions, indices, *args, **options)

        out = tmp_path / whole.name
        with monkeypatch.context() as patch:
            patch.setattr(ModelWorker, "answer", answer)
            assert evaluation.main(flags(folder, "pope.jsonl", out)) == 130
        assert len(asked) == 2
        assert not list(tmp_path.glob("*.jsonl"))
        assert evaluation.main(flags(folder, "pope.jsonl", out)) == 0
        for path in whole.parent.glob("*.jsonl"):
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()
        journal = whole.with_suffix("") / "answers.jsonl"
        assert (tmp_path / "pope" / "answers.jsonl").read_bytes() == journal.read_bytes()
        reports = [json.loads((at / "pope" / "results.json").read_text()) for at in (tmp_path, whole.parent)]
        assert reports[0] | {"command": "", "date": ""} == reports[1] | {"command": "", "date": ""}

    def test_same_files_where_another_process_reads(self, folder, whole, tmp_path, monkeypatch):
        start, there = Ahead._start, []

        def and_wait(self, then):
            start(self, then)
            if self._ready:
                there.append(self._ready.result(timeout=300))

        monkeypatch.setattr(Ahead, "_start", and_wait)
        monkeypatch.setattr(files, "MIN_BATCHES", 0)
        assert evaluation.main(flags(folder, "pope.jsonl", tmp_path / whole.name)) == 0
        assert len(there) > 2
        for path in [*whole.parent.glob("*.jsonl"), whole.with_suffix("") / "answers.jsonl"]:
            assert (tmp_path / path.relative_to(whole.parent)).read_bytes() == path.read_bytes()
        seconds = json.loads((tmp_path / "pope" / "seconds.json").read_text())
        assert seconds["wall"] > seconds["compiling"] + seconds["device"] > 0

    def test_another_file_is_another_run(self, folder, whole, capsys):
        argv = flags(folder, "pope.jsonl", whole, "--border=last", "--limit=3")
        assert "other settings (border, rows)" in failure(evaluation.main, argv, capsys)
