"""LLaVA's question files in, answers in LLaVA's form out, and nothing lost on the way."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from experiments import eval as evaluation
from experiments import loading
from experiments.cli import CommandError
from experiments.evaluation import formats
from experiments.evaluation.file_asker import FileAsker
from experiments.evaluation.file_questions import FileQuestions
from experiments.evaluation.images import path_inside
from tests.commands import failure, save_checkpoint

KEEP = 5
SUFFIX = "Answer with the option's letter from the given choices directly."
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# In the form of LLaVA's own files
POPE = [
    {
        "question_id": 1,
        "image": "a.png",
        "text": "Is there a dog in the image?\nAnswer with one word.",
        "category": "x",
    },
    {"question_id": 2, "image": "deep/b.jpg", "text": "Is there a red circle in the image?", "category": "x"},
    {"question_id": "code/0020.png", "image": "a.png", "text": "What word is on the sign? " * 9},
    {"question_id": "code/0020.png", "image": "a.png", "text": "What number is on the card?"},
    {"question_id": 5, "text": "What is it?"},
]


def noise(size, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(size, seed):
    file = io.BytesIO()
    noise(size, seed).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model, images, and a file of each format."""
    root = tmp_path_factory.mktemp("files")
    save_checkpoint(root / "model")
    (root / "images" / "deep").mkdir(parents=True)
    noise((60, 90), 0).save(root / "images" / "a.png")
    noise((90, 30), 1).save(root / "images" / "deep" / "b.jpg")
    (root / "pope.jsonl").write_text("".join(json.dumps(row) + "\n" for row in POPE))
    science = [
        {
            "id": "4",
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nWhere?\nA. left\nB. top"}],
        },
        {"id": "5", "conversations": [{"from": "human", "value": "What?\nA. left"}, {"from": "gpt", "value": "A"}]},
    ]
    (root / "science.json").write_text(json.dumps(science))
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    table = [
        ["241", "Where is\tit?", "nan", "left", "right", "nan", "", "B", "c", encoded((60, 40), 2)],
        ["252", 'Is "it" there?', "Look.\nWell.", "yes", "no", "A. maybe", "none", "A", "c", encoded((40, 60), 3)],
    ]
    with (root / "mmbench.tsv").open("w", newline="") as file:
        for row in [header, *table]:
            quoted = ('"' + cell.replace('"', '""') + '"' if set(cell) & set('\t\n"') else cell for cell in row)
            file.write("\t".join(quoted) + "\n")
    return root


def flags(folder, name, out, *more):
    return [
        *(f"--model={folder / 'model'}", f"--questions={folder / name}", f"--answers={out}", f"--keep={KEEP}"),
        *("--batch-size=2", "--max-new-tokens=6", "--methods=tokencarve", f"--images={folder / 'images'}", *more),
    ]


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
        out = tmp_path / "pope.jsonl"
        more = ["--image-aspect-ratio=checkpoint", "--conv-mode=checkpoint", "--limit=2"]
        assert evaluation.main(flags(folder, "pope.jsonl", out, *more)) == 0
        settings = json.loads((tmp_path / "pope" / "results.json").read_text())["settings"]
        assert (settings["image_aspect_ratio"], settings["rows"]) == ("crop", 2)
        assert [a["text"] for a in answers(out, "vanilla")] != [a["text"] for a in answers(whole, "vanilla")][:2]

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
        asked, original = [], FileAsker.ask

        def ask(self, indices):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(list(indices))
            return original(self, indices)

        out = tmp_path / whole.name
        with monkeypatch.context() as patch:
            patch.setattr(FileAsker, "ask", ask)
            assert evaluation.main(flags(folder, "pope.jsonl", out)) == 130
        assert len(asked) == 2
        assert not list(tmp_path.glob("*.jsonl"))
        assert evaluation.main(flags(folder, "pope.jsonl", out)) == 0
        for path in whole.parent.glob("*.jsonl"):
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()
        journal = whole.with_suffix("") / "answers.jsonl"
        assert (tmp_path / "pope" / "answers.jsonl").read_bytes() == journal.read_bytes()
        reports = [json.loads((at / "pope" / "results.json").read_text()) for at in (tmp_path, whole.parent)]
        assert reports[0] | {"command": ""} == reports[1] | {"command": ""}

    def test_another_file_is_another_run(self, folder, whole, capsys):
        argv = flags(folder, "pope.jsonl", whole, "--border=last", "--limit=3")
        assert "other settings (border, rows)" in failure(evaluation.main, argv, capsys)


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
            (["--questions=nowhere.jsonl"], "nowhere.jsonl: No such file"),
            (["--questions=nowhere.xlsx"], "ends in .jsonl, .json, .tsv"),
            (["--images=nowhere"], "nowhere: no such folder of images"),
            (["--image-aspect-ratio=crop", "--border=drop"], "'drop' is for padded images; here they are 'crop'"),
            (["--border=last", "--methods=tome"], "'last': a cut in the vision tower"),
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
