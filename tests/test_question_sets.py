"""A benchmark of one's own: one file with a `QuestionSet`, and one row of `experiments.data.registry`."""

import json

import numpy as np

from experiments import eval as evaluation
from experiments.core.config import PromptConfig
from experiments.data import registry
from experiments.data.questions import QuestionSet, Sample
from tests.commands import failure, save_checkpoint


class Colours(QuestionSet):
    """A benchmark of one's own; its module would stand in experiments/data."""

    max_new_tokens = 2
    prompt, least_images, title = PromptConfig(border="last"), 1, "colours"

    def load(self):
        return self

    def __len__(self):
        return 3

    def sample(self, index):
        image = np.full((40, 60, 3), 80 * index, np.uint8)
        return Sample(f"colour-{index}", "Which colour is it?", (image,), "grey", index)

    def score(self, index, prediction):
        return "grey" in prediction

    def identity(self):
        return {"colours": 1}


def test_a_benchmark_is_one_file_and_one_row(tmp_path, monkeypatch, capsys):
    model = save_checkpoint(tmp_path / "model")
    argv = [f"--model={model}", "--keep=5", "--questions=colours", f"--answers={tmp_path / 'a.jsonl'}"]
    assert "colours: a question file ends in .jsonl" in failure(evaluation.main, argv, capsys)
    monkeypatch.setitem(registry.QUESTION_SETS, "colours", lambda name, images, limit, seed: Colours())
    assert evaluation.main(argv) == 0
    report = json.loads((tmp_path / "a" / "results.json").read_text())
    assert (report["kind"], report["questions"]) == ("questions", "colours")
    assert report["settings"]["border"] == "last"
    assert [row["accuracy"]["of"] for row in report["methods"]] == [3, 3, 3]
    lines = [json.loads(line) for line in (tmp_path / "a-random.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == ["colour-0", "colour-1", "colour-2"]
    assert [line["text"] for line in lines] == [one["predictions"]["random"] for one in report["samples"]]
