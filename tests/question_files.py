"""For tests of question files: a small folder of them, and a command line."""

import base64
import io
import json

import numpy as np
from PIL import Image

from tests.commands import save_checkpoint

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


def make_folder(root):
    """Model, images, and a file of each format."""
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
