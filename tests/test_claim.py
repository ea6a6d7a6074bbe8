"""A folder belongs to one kind of results: nothing that another command wrote is replaced."""

import json

import pytest

from experiments import bench, gpu_session
from experiments.studies import carve_tail, information_routes, video_prefill
from tests.commands import failure

COMMANDS = [bench, gpu_session, carve_tail, information_routes, video_prefill]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    ("name", "text"),
    [("results.json", '{"kind": "eval"}'), ("answers.jsonl", '{"settings": {"kind": "compare"}}\n')],
)
def test_results_of_another_kind_are_left_alone(command, name, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_session, "look", lambda: {"device": "a GPU", "devices": 1})
    (tmp_path / name).write_text(text)
    said = failure(command.main, [f"--out={tmp_path}"], capsys)
    kind = (json.loads(text).get("settings") or json.loads(text))["kind"]
    assert f"holds results of the kind '{kind}'" in said
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text
