"""What a run keeps of its work so far: what is torn goes, and what is damaged is one line."""

import pytest

from experiments.comparison.run import SHAPE
from experiments.core.journal import Journal, OtherRunError, mismatch
from experiments.evaluation.answers import Answers

ANSWER = '{"indices": [1], "errors": {"2": "no"}, "found": {"vanilla": {"prediction": ["yes"], "kl": [0]}}}'


@pytest.mark.parametrize("text", [ANSWER, '{"cost_of": "vanilla", "cost": {"cache_bytes": 1, "xla_flops": null}}'])
def test_what_was_written_is_read(tmp_path, text):
    path = tmp_path / "journal"
    path.write_text('{"settings": {"a": 1}}\n' + f"{text}\n")
    assert len(Journal(path, {"a": 1}, shape=SHAPE).entries) == 1
    with pytest.raises(OtherRunError, match=r"holds a run with other settings \(a, b\)"):
        Journal(path, {"a": 2, "b": 3}, shape=SHAPE)


@pytest.mark.parametrize("torn", ["", '{"settings": {"a"', '{"settings": {"a": 1}}\n{"indi'])
def test_a_torn_line_goes(tmp_path, torn):
    path = tmp_path / "journal"
    path.write_text(torn)
    journal = Journal(path, {"a": 1}, shape=SHAPE)
    assert journal.entries == []
    journal.add({"round": {"prefill_s": {"vanilla": 0.5}, "own_s": {}}})
    assert Journal(path, {"a": 1}, shape=SHAPE).entries == journal.entries
    assert Journal(path, {"a": 2}, restart=True).entries == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "it is not JSON"),
        ("[]", "it is not an object"),
        ('{"said": 1}', "it has none of indices, cost_of, round, turns_of"),
        (ANSWER.replace("[1]", '["1"]'), "indices[0] is not int"),
        (ANSWER.replace("[1]", "[true]"), "indices[0] is not int"),
        (ANSWER.replace("[1]", "[-1]"), "indices[0] is negative"),
        (ANSWER.replace('"2"', '"-2"'), "errors: '-2' is not a number"),
        (ANSWER.replace('"2"', '"two"'), "errors: 'two' is not a number"),
        (ANSWER.replace('"errors"', '"error"'), "it has no errors"),
        (ANSWER.replace('["yes"]', '"yes"'), "prediction is not a list"),
        (ANSWER.replace("[0]", '["0"]'), "kl[0] is not float"),
        ('{"round": {"prefill_s": {"vanilla": []}, "own_s": {}}}', "vanilla is not float"),
    ],
)
def test_what_is_damaged_names_file_and_line(tmp_path, line, says):
    path = tmp_path / "journal"
    path.write_text('{"settings": {}}\n' + f"{ANSWER}\n{line}\n")
    with pytest.raises(OtherRunError) as error:
        Journal(path, {}, shape=SHAPE)
    assert str(error.value) == f"{path} is damaged in line 3: {says}"


@pytest.mark.parametrize("first", ["nonsense", '{"a": 1}', "[]", '{"settings": 3}'])
def test_a_file_that_is_no_journal(tmp_path, first):
    path = tmp_path / "journal"
    path.write_text(f"{first}\n{{}}\n")
    with pytest.raises(OtherRunError, match="is damaged in line 1"):
        Journal(path, {})
    assert path.read_text() == f"{first}\n{{}}\n"


def test_columns_have_one_value_for_each_question(tmp_path):
    journal = Journal(tmp_path / "journal", {})
    journal.add({"indices": [0, 1], "errors": {}, "found": {"vanilla": {"prediction": ["yes"]}}})
    with pytest.raises(OtherRunError, match="damaged in line 2: vanilla has not one value for each of 2"):
        Answers(["vanilla"], journal, 2)


def test_fewer_questions_than_are_known(tmp_path):
    journal = Journal(tmp_path / "journal", {})
    found = {name: {"prediction": ["yes", "no", "yes"]} for name in ("vanilla", "fastv")}
    journal.add({"indices": [0, 1, 5], "errors": {"2": "no", "6": "no"}, "found": found})
    answers = Answers(["vanilla", "fastv", "tome"], journal, 3)
    assert (answers.known["fastv"].keys(), answers.errors) == ({0, 1}, {2: "no"})
    assert answers.missing([0, 1, 2]) == ["tome"]
    assert answers.missing([0, 1], mapped=[1]) == ["vanilla", "fastv", "tome"]


def test_shapes():
    assert mismatch({"a": [1, 2.5], "c": None}, {"a": [float], "b?": str, "c": object}) == ""
    assert mismatch({"a": {"x": True}}, {"a": {str: int}}) == "x is not int"
