"""A question file made to break the run: every row is answered, or recorded with what is wrong with it."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments import eval as evaluation
from tests.commands import save_checkpoint

ROWS = 66  # each kind twice, beside others
TEXT = "what is on the sign?"
# By kind: the row as JSON fields, or the line itself; and what is wrong with it, or None where it is answered.
KINDS = {
    "fine": ({"image": "fine.png"}, None),
    "CMYK": ({"image": "cmyk.jpg"}, None),
    "16 bit": ({"image": "deep.png"}, None),
    "animated": ({"image": "moving.gif"}, None),
    "PNG called JPEG": ({"image": "wrong.jpg"}, None),
    "truncated": ({"image": "truncated.png"}, "truncated.png' cannot be read"),
    "20,000 x 20,000": ({"image": "huge.png"}, "huge.png' has more than"),
    "says that it is larger": ({"image": "bomb.png"}, "bomb.png' has more than"),
    "strip": ({"image": "strip.png"}, "6000 x 2 pixels"),
    "text called PNG": ({"image": "text.png"}, "unknown format"),
    "empty file": ({"image": "empty.png"}, "unknown format"),
    "folder": ({"image": "folder.png"}, "is a folder"),
    "missing": ({"image": "nowhere.png"}, "no such file"),
    "outside": ({"image": "../model/config.json"}, "not a path inside"),
    "absolute": ({"image": "/etc/hostname"}, "not a path inside"),
    "long name": ({"image": "a" * 5000}, "name too long"),
    "NUL": ({"image": "a\0b"}, "not a path inside"),
    "number for an image": ({"image": 5}, "image is no text"),
    "empty question": ({"image": "fine.png", "text": ""}, None),
    "10,000 words": ({"image": "fine.png", "text": "word " * 10_000}, "the model's context is 2048"),
    "emoji": ({"image": "fine.png", "text": "what is 🙈👩‍👩‍👧‍👦 \u202e on the sign?"}, None),
    "placeholder": ({"image": "fine.png", "text": "<image>what is<ima<image>ge> on the sign?<image>"}, None),
    "special tokens": ({"image": "fine.png", "text": "</s>what is {0} <pad> {text} on the sign? %s"}, None),
    "no image": ({}, None),
    "same id": ({"image": "fine.png", "question_id": "twice"}, None),
    "no text": ({"image": "fine.png", "text": None}, "text is missing"),
    "no id": ({"question_id": None}, "question_id is missing"),
    "id of another kind": ({"question_id": 0.5}, "question_id is neither"),
    "broken JSON": ('{"question_id": 3, "text": ', "broken JSON"),
    "no UTF-8": (b'{"question_id": 3, "text": "\xff"}', "broken JSON"),
    "nested": ("[" * 100_000, "broken JSON"),
    "a list": ("[1, 2]", "no JSON object but list"),
    "half a pair": (r'{"question_id": 3, "text": "\ud83d"}', "surrogate"),
}


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    save_checkpoint(root / "model")
    at = root / "images"
    at.mkdir()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    image.save(at / "fine.png")
    image.convert("CMYK").save(at / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 2**16, (40, 30), dtype=np.uint16)).save(at / "deep.png")
    image.save(at / "moving.gif", save_all=True, append_images=[image.rotate(90)])
    (at / "wrong.jpg").write_bytes((at / "fine.png").read_bytes())
    (at / "truncated.png").write_bytes((at / "fine.png").read_bytes()[:3000])
    Image.new("1", (20_000, 20_000)).save(at / "huge.png")
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    (at / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x"))
    Image.new("RGB", (6000, 2)).save(at / "strip.png")
    (at / "text.png").write_text("no image")
    (at / "empty.png").touch()
    (at / "folder.png").mkdir()
    return root


def test_every_row_is_answered_or_recorded(folder, tmp_path, capsys, recwarn):
    kinds = [list(KINDS)[number % len(KINDS)] for number in range(ROWS)]
    content = []
    for number, kind in enumerate(kinds):
        row, _ = KINDS[kind]
        if isinstance(row, dict):
            row = json.dumps({"question_id": number, "text": TEXT} | row)
        content.append(row if isinstance(row, bytes) else row.encode())
    (tmp_path / "q.jsonl").write_bytes(b"\n".join(content))
    out = tmp_path / "a.jsonl"
    status = evaluation.main(
        [
            *(f"--model={folder / 'model'}", f"--questions={tmp_path / 'q.jsonl'}", f"--images={folder / 'images'}"),
            *(f"--answers={out}", "--keep=5", "--batch-size=8", "--max-new-tokens=3", "--methods=tokencarve"),
        ]
    )
    printed, said = capsys.readouterr()
    failed = [number for number, kind in enumerate(kinds) if KINDS[kind][1]]
    assert status == 1
    assert f"{len(failed)} questions could not be asked; {tmp_path / 'a' / 'results.json'} says why" in said
    assert said.count("\n") == 1
    assert f"{ROWS - len(failed)} of {ROWS} questions answered" in printed
    assert not [str(warning.message) for warning in recwarn if "image" in str(warning.message).lower()]

    report = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [record["line"] for record in report["failed"]] == [number + 1 for number in failed]
    for record in report["failed"]:
        assert KINDS[kinds[record["sample"]]][1] in record["error"], kinds[record["sample"]]
    for method in ("vanilla", "tokencarve"):
        answers = [json.loads(line) for line in (tmp_path / f"a-{method}.jsonl").read_text().splitlines()]
        own = [number for number in range(ROWS) if number not in failed]
        assert [answer["question_id"] for answer in answers] == [
            "twice" if kinds[number] == "same id" else number for number in own
        ]
        assert len({answer["answer_id"] for answer in answers}) == len(own)
        fine = {answer["text"] for number, answer in zip(own, answers, strict=True) if kinds[number] == "fine"}
        assert len(fine) == 1  # whoever stands beside it in a batch
        assert "<image>" not in "".join(answer["prompt"] for answer in answers)
