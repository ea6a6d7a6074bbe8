"""`eval --questions` for families whose images have any number of visual tokens, and the commands that refuse them."""

import json

import numpy as np
import pytest

from experiments import compare, embed
from experiments import eval as evaluation
from experiments.core.loading import Checkpoint, load
from experiments.data.image_files import open_image
from experiments.evaluation.worker import ModelWorker
from tests import families, qwen
from tests.commands import failure
from tests.question_files import noise
from tokencarve_jax import plan

OWN = ["--conv-mode=checkpoint", "--image-aspect-ratio=checkpoint"]
TILED = {"llava_next": "llava-v1.6-vicuna-7b", "llava_onevision": "llava-onevision-qwen2-7b"}
ROWS = [
    {"question_id": 1, "image": "wide.png", "text": "What is on the sign?"},
    {"question_id": 2, "image": "small.png", "text": "Is there a red circle in the image?"},
    {"question_id": 3, "text": "What is it?"},
]


@pytest.fixture(scope="module", params=[*TILED, *qwen.FAMILIES])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    path = tmp_path_factory.mktemp(family)
    if family in TILED:
        families.make(TILED[family], path / "model", words=True)
    else:
        qwen.make(path / "model", family, words=True)
    noise((96, 48), 0).save(path / "wide.png")
    noise((24, 24), 1).save(path / "small.png")
    (path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def argv(folder, out, *more):
    return [
        *(f"--model={folder / 'model'}", f"--questions={folder / 'asked.jsonl'}", f"--images={folder}"),
        *(f"--out={out}", "--max-new-tokens=4", *more),
    ]


def said(out, method):
    lines = (out / f"answers-{method}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("keep", [0.3, 40])
def test_answers_are_those_of_generate(folder, keep, tmp_path, capsys, monkeypatch):
    """One by one, with a fraction, and with a count, which keeps all of the smaller image."""
    # The random models say much that their few words do not spell.
    monkeypatch.setattr(Checkpoint, "decode", lambda self, tokens: [str(row) for row in np.asarray(tokens).tolist()])
    left, prefill = [], ModelWorker._prefill

    def spy(self, batch, cell, *more, **options):
        found = prefill(self, batch, cell, *more, **options)
        left.append((cell.method, [cut.indices.shape[1] for cut in found[0].cuts]))
        return found

    monkeypatch.setattr(ModelWorker, "_prefill", spy)
    more = [f"--answers={tmp_path}/answers.jsonl", f"--keep={keep}", "--methods=divprune", "--batch-size=1"]
    assert evaluation.main(argv(folder, tmp_path, *OWN, *more)) == 0
    assert "3 of 3 questions answered. Visual tokens are those of the first question." in capsys.readouterr().out
    checkpoint, texts, want = load(str(folder / "model"), dtype="float32"), [], []
    for row in ROWS:
        images = [open_image(folder / row["image"])] if "image" in row else []
        inputs = checkpoint.encode([images], [row["text"]])
        visual = checkpoint.llava.prompt(**inputs.named).visual_slots.shape[1]
        kept = plan(visual, min(keep, visual) if keep == 40 else keep).kept if visual else 0
        want += [("vanilla", []), ("divprune", [kept] if kept < visual else [])]
        carve = (("input", "divprune", kept),) if visual else None
        texts += checkpoint.decode(checkpoint.llava.generate(**inputs.named, max_new_tokens=4, carve=carve))
    assert sorted(left) == sorted(want)
    assert texts == said(tmp_path, "divprune")
    rows = {row["method"]: row for row in json.loads((tmp_path / "results.json").read_text())["methods"]}
    assert rows["divprune"]["visual_tokens"] == want[1][1][0] < rows["vanilla"]["visual_tokens"]


def test_what_is_refused(folder, family, tmp_path, capsys):
    answers = f"--answers={tmp_path}/out.jsonl"
    model, away = f"--model={folder / 'model'}", f"is a {family}, whose images have any number of visual tokens"
    line = failure(evaluation.main, argv(folder, tmp_path, answers, OWN[0]), capsys)
    assert "pass --image-aspect-ratio=checkpoint" in line
    if family != "llava_next":
        line = failure(evaluation.main, argv(folder, tmp_path, answers, OWN[1]), capsys)
        assert f"{family} models do not know the prompt 'vicuna_v1'; pass --conv-mode=checkpoint" in line
    assert away in failure(compare.main, argv(folder, tmp_path / "compare", *OWN), capsys)
    assert away in failure(evaluation.main, [model, f"--out={tmp_path}/scenes", *OWN], capsys)
    if family == "llava_onevision":
        line = failure(evaluation.main, argv(folder, tmp_path, answers, *OWN, "--methods=trim"), capsys)
        assert "trim needs" in line
    if family in qwen.FAMILIES:
        line = failure(embed.main, [model, "--keep=4", str(folder / "wide.png")], capsys)
        assert f"is a {family}, which this command does not know; `generate` does" in line
