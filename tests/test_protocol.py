"""The protocol's figures, against examples that are computed by hand."""

import pytest

from experiments.comparison import protocol, turns
from experiments.comparison.cells import AtBudgets, AtLayer, Line
from experiments.core import cli
from experiments.core.config import ModelConfig
from experiments.core.journal import Journal, OtherRunError
from experiments.core.methods import BASELINE
from experiments.data.scene_questions import SceneQuestions
from experiments.evaluation.answers import Answers
from experiments.evaluation.worker import ModelWorker, WorkerConfig
from experiments.reports import protocol_tables
from experiments.reports.compare_tables import COMPUTE, COUNT
from tests.tiny import make_llava

T, F = True, False
SCENES = [0, 0, 1, 1, 2, 2]
RIGHT = {
    "vanilla": [T, T, T, T, T, F],
    "r": [T, F, F, T, F, F],
    "r at 9": [T, T, F, T, F, F],
    "d": [T, T, F, F, F, T],
    "m": [T, T, T, F, T, F],
    "k": [T, T, T, T, F, F],
}
LINES = (
    Line(8, COUNT, "random", "r"),
    Line(8, COMPUTE, "random", "r at 9"),
    Line(8, COUNT, "downsampled", "d"),
    Line(8, COUNT, "mine", "m"),
    Line(8, COMPUTE, "mine", "m"),
    Line(8, COUNT, "mine,kept", "k"),
    Line(8, COUNT, "missing", None, "it cannot"),
    Line(None, "given", "own", "k"),
)


def test_floors_are_the_same_budget_and_basis():
    found = {(row["method"], row["basis"]): row for row in protocol.floors(LINES, RIGHT, SCENES)}
    assert found.keys() == {("mine", COUNT), ("mine", COMPUTE), ("mine,kept", COUNT)}
    mine = found["mine", COUNT]
    assert mine["accuracy"]["right"] == 4
    assert mine["over"]["random"][0] == pytest.approx((4 - 2) / 6)
    assert mine["over"]["downsampled"][0] == pytest.approx((4 - 3) / 6)
    assert found["mine", COMPUTE]["over"]["random"][0] == pytest.approx((4 - 3) / 6)
    alone = protocol.floors([line for line in LINES if line.method == "mine"], RIGHT, SCENES)
    assert [row["over"] for row in alone] == [{"random": None, "downsampled": None}] * 2


def test_groups_are_vanillas_right_answers_by_what_down_sampling_does():
    found = {row["method"]: row for row in protocol.groups(LINES, RIGHT)}
    assert found.keys() == {"random", "mine", "mine,kept"}
    # Vanilla answers 0 to 4; the down-sampled image 0 and 1 of them.
    assert [(found["mine"][name]["right"], found["mine"][name]["of"]) for name in ("hard", "easy")] == [(2, 3), (2, 2)]
    assert [(found["random"][name]["right"], found["random"][name]["of"]) for name in ("hard", "easy")] == [
        (1, 3),
        (1, 2),
    ]
    all_right = {**RIGHT, "d": [T] * 6}
    assert {row["method"]: row["hard"] for row in protocol.groups(LINES, all_right)}["mine"] is None


def test_layers_and_the_horizon():
    places = [AtLayer("random", 1, 8, "r"), AtLayer("random", 3, 1, "m"), AtLayer("random", 5, 1, "vanilla")]
    rows = protocol.layers(places, RIGHT, {"r": [0.5, 0.25], "m": [0.5, 0.0], "vanilla": [0.0, 0.0]})
    assert [(row["layer"], row["accuracy"]["right"], row["lost"]) for row in rows] == [
        (1, 2, 0.375),
        (3, 4, 0.25),
        (5, 5, 0),
    ]
    assert protocol.horizon(rows, 5 / 6) == 5
    assert protocol.horizon(rows, 4 / 6) == 3
    assert protocol.horizon(rows, 1.0) is None


def test_positions_compare_the_forms_of_one_method():
    (row,) = protocol.positions(LINES, RIGHT, SCENES)
    assert (row["method"], row["budget"], list(row["forms"])) == ("mine", 8, ["renumbered", "kept"])
    assert [row["forms"][form]["right"] for form in row["forms"]] == [4, 4]
    assert row["kept_gains"][0] == 0


def test_second_questions_are_about_another_thing():
    class Questions:
        def record(self, index):
            family = ("reading", "reading", "spatial", "", "")[index % 5]
            answer = None if index == 4 else "yes"
            return {"sample": index, "scene": 0 if index < 3 else 1, "family": family, "answer": answer}

    assert turns.seconds(Questions(), [0, 1, 2, 3, 4]) == {0: 2, 1: 2, 2: 0, 4: 3}
    second = {"vanilla": {0: T, 2: F}, "m": {0: F, 2: F}}
    rows = {0: 0, 2: 1}
    right = {"vanilla": [T, T], "m": [T, F]}
    found = protocol.turns({"vanilla": "vanilla", "m": "mine"}, {0: 2, 2: 0, 7: 9}, second, right, rows, [0, 1])
    assert [(row["method"], row["second"]["right"], row["alone"]["right"]) for row in found] == [
        ("vanilla", 1, 2),
        ("mine", 0, 1),
    ]
    assert found[1]["behind_first"][0] == -0.5


def test_an_entry_of_other_length_is_refused(tmp_path):
    journal = Journal(tmp_path / "journal", {}, shape=(turns.SHAPE,))
    journal.add({"turns_of": [0, 1], "turns": {"vanilla": {"said": ["yes"], "right": [True]}}})

    with pytest.raises(OtherRunError, match="vanilla has not one value for each of turns_of"):
        turns.ask_second(None, journal, Answers(["vanilla"], journal, 2), None, ["vanilla"], 2)


def test_what_the_protocol_asks():
    config = make_llava().config
    grid = AtBudgets.of(["fastv", "divprune", "divprune,median"], [9, 5], protocol=True).grid(config, length=40)
    methods = {budget: {line.method for line in grid.lines if line.budget == budget} for budget in (9, 5)}
    assert methods[9] == {"tokencarve", "fastv", "divprune", "divprune,median", "random", "downsampled"}
    assert methods[5] - methods[9] == {"divprune,kept"}
    places = {(place.method, place.layer, place.kept) for place in grid.layers}
    last = config.text.num_layers - 1
    inside = {("tokencarve", 5), ("fastv", 5), ("random", 5), ("random", 1)}
    assert {(method, kept) for method, _, kept in places} == inside
    assert {layer for _, layer, _ in places} == set(range(1, last + 1))
    assert all(place.key in grid.cells for place in grid.layers)
    assert not AtBudgets.of(["fastv"], [9]).grid(config, length=40).layers


def test_tables_show_what_is_there():
    judged = {
        "smallest": 8,
        "floors": protocol.floors(LINES, RIGHT, SCENES),
        "groups": protocol.groups(LINES, RIGHT),
        "layers": [],
        "horizon": None,
        "turns": [],
        "positions": protocol.positions(LINES, RIGHT, SCENES),
    }
    text = protocol_tables.markdown(protocol_tables.sections(judged))
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "### Above the floors",
        "### What down-sampling cannot answer",
        "### Positions",
    ]
    assert "| mine " in text
    assert "+33.3" in text
    assert protocol_tables.plain(protocol_tables.sections(judged)).count("mine") >= 3


def test_second_questions_are_answered_as_in_the_whole_conversation():
    """The shipped model: the cache of the first question against one prompt with both."""
    questions = SceneQuestions(2, 0)
    worker = ModelWorker(
        WorkerConfig(
            model=ModelConfig(source=str(cli.SHIPPED), dtype="float32"),
            prompt=questions.prompt,
            questions=questions,
            comparison=AtBudgets.of(["random"], [8]),
            batch_size=4,
            seed=0,
        )
    )
    then = turns.seconds(questions, range(6))
    assert then == {0: 1, 1: 2, 2: 0, 3: 4, 4: 5, 5: 3}
    first = [questions.sample(index).answer for index in range(6)]
    (carved,) = (name for name in worker.cells if name.startswith("random"))
    marks = {BASELINE: [], carved: []}
    for part in ([0, 1, 2, 3], [4, 5]):
        said = {key: [first[index] for index in part] for key in marks}
        entry = turns.SecondTurn(part, then, said)(worker)
        assert entry["turns_of"] == part
        for name, own in entry["turns"].items():
            assert own["said"] == said[name]
            marks[name] += own["right"]
    for index, mark in enumerate(marks[BASELINE]):
        one, two = questions.sample(index), questions.sample(then[index])
        prompt = f"USER: <image>\n{one.text} ASSISTANT: {first[index]} USER: {two.text} ASSISTANT:"
        inputs = worker.checkpoint.encode_texts([list(one.images)], [prompt], questions=[two.text])
        answer = worker.checkpoint.decode(worker.model.generate(**inputs.named, max_new_tokens=8))[0]
        assert mark == (answer == two.answer), (index, answer)
    assert sum(marks[carved]) < sum(marks[BASELINE])
