"""Schedules of cuts as text: both ways, what is wrong with them, and the commands that take them."""

import dataclasses
import json
import re
import types

import pytest
from PIL import Image

from experiments import eval as evaluation
from experiments import generate
from experiments.core import methods, schedules
from experiments.data.scenes import make_scene
from experiments.evaluation.cells import AtOneBudget
from models.engine.official import sparsevlm_schedule
from models.engine.plan import OPTIONS, Cut, parse
from models.errors import CommandError
from tests.commands import VISUAL, failure, save_checkpoint
from tokencarve_jax import COMPRESSORS

CARVE = COMPRESSORS["tokencarve"]
MERGED = dataclasses.replace(COMPRESSORS["fastv"], rest="merged")
CUTS = {
    "tokencarve@2=128": Cut(2, CARVE, 128),
    "tome@tower=288": Cut("tower", COMPRESSORS["tome"], 288),
    "divprune@input=0.222": Cut("input", COMPRESSORS["divprune"], 0.222),
    "tokencarve@31=1.0,image": Cut(31, CARVE, 1.0, scope="image"),
    "tokencarve@1=1,kept,calibrated": Cut(1, CARVE, 1, positions="kept", calibrated=True),
    "fastv@3=9,median,calibrated,merged": Cut(3, MERGED, 9, positions="median", calibrated=True),
    "fastv@3=9,distances": Cut(3, COMPRESSORS["fastv"], 9, calibrated="distances"),
    "tokencarve-calibrated@2=9": Cut(2, COMPRESSORS["tokencarve-calibrated"], 9),
    "tokencarve@2=5e-05,image,renumbered,full,uncalibrated": Cut(2, CARVE, 5e-5, "image", "renumbered", "full", False),
}


@pytest.mark.parametrize("text", CUTS)
def test_text_and_cut_are_the_same(text):
    assert schedules.read([text]) == (CUTS[text],)
    assert str(CUTS[text]) == text


@pytest.mark.parametrize(
    "carve",
    [
        ((1, "fastv", 4),),
        (1, "fastv", 4),
        [1, COMPRESSORS["fastv"], 4],
        "fastv@1=4",
        ("fastv@1=4",),
        Cut(1, COMPRESSORS["fastv"], 4),
    ],
    ids=["tuples", "triple", "list", "text", "texts", "cut"],
)
def test_models_take_one_cut_in_any_form(carve):
    assert parse(carve, num_layers=5) == (Cut(1, COMPRESSORS["fastv"], 4),)


def test_models_take_several_cuts_as_text():
    three = "tome@tower=288 fastv@1=0.5,full tokencarve@2=64"
    assert parse(three, num_layers=5) == schedules.read(three.split()) == parse(three.split(), num_layers=5)


def test_options_come_in_any_order_and_defaults_are_words_too():
    assert schedules.read(["fastv@2=9,full,kept,joint"]) == (
        Cut(2, COMPRESSORS["fastv"], 9, positions="kept", earlier="full"),
    )
    for word, (name, value) in OPTIONS.items():
        (cut,) = schedules.read([f"tokencarve@2=9,{word}"])
        assert getattr(cut, name) == value
        parse((cut,), num_layers=5)
    texts = list(CUTS)[:3]
    assert " ".join(map(str, schedules.read(texts))) == " ".join(texts)


def test_a_method_of_ones_own(tmp_path):
    folder = tmp_path / "a@b=c,d"
    folder.mkdir()
    (folder / "own.py").write_text(
        "from tokencarve_jax import Selection\nfrom tokencarve_jax.scores.ranking import best, tiers\n"
        "def mine(tokens, *, keep):\n"
        "    return Selection(best(abs(tokens.values).max(-1), keep, tiers(tokens.valid, tokens.values)))\n"
    )
    (cut,) = schedules.read([f"{folder}/own.py:mine@input=3,full"])
    assert (str(cut), cut.place, cut.earlier) == ("mine@input=3,full", "input", "full")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tokencarve", "a part is missing"),
        ("@2=3", "a part is missing"),
        ("tokencarve@2", "a part is missing"),
        ("tokencarve@2=", "a part is missing"),
        ("tokencarve@attic=3", "'attic' is neither 'tower', 'input' nor the number"),
        ("tokencarve@-1=3", "'-1' is neither"),
        ("tokencarve@2=0", "'0' is neither a fraction"),
        ("tokencarve@2=3,fulll", "no option 'fulll'; there are joint, image"),
        ("tokencarve@2=3,", "no option ''"),
        ("tokencarve@2=3,full,gathered", "earlier is chosen twice"),
        ("magic@2=3", "no method is named 'magic'"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_cut_and_the_form(text, says):
    with pytest.raises(CommandError, match=re.escape(says)) as error:
        schedules.read(["fastv@2=9", text])
    said = str(error.value)
    assert said.startswith(f"cut {text!r}: ")
    assert said.endswith("; expected METHOD@PLACE=KEEP[,OPTION...], such as tokencarve@2=128,calibrated")
    assert "\n" not in said


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


SCHEDULE = ["divprune@input=9", "tokencarve@2=4,full"]


def test_generate_takes_one(model, tmp_path, capsys):
    image = tmp_path / "scene.png"
    Image.fromarray(make_scene("test", 0).image).save(image)
    flags = [f"--model={model}", f"--image={image}", "--prompt=Where is it?", "--max-new-tokens=2", "--schedule"]
    assert generate.main([*flags, *SCHEDULE]) == 0
    said = dict(re.findall(r"^(visual tokens|sequence|KV cache) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert said["visual tokens"] == f"{VISUAL} -> 4"
    sizes = re.match(r"([\d.]+) KiB -> ([\d.]+) KiB", said["KV cache"])
    slot = 2 * 12 * 4 / 1024  # KiB: keys and values, one head of 12, float32
    slots = 3 * (32 + 32)
    assert float(sizes[1]) == pytest.approx(slots * slot, rel=1e-2)
    assert float(sizes[2]) == pytest.approx((slots - 2 * (VISUAL - 9) - (VISUAL - 4)) * slot, rel=1e-2)
    for wrong, says in (
        ([*SCHEDULE, "fastv@1=3"], "in the order tower, input, layers"),
        (["tokencarve@3=4"], "cut tokencarve@3=4: place must be"),
        (["tokencarve@2=17"], "must be in 1..16"),
        (["tokencarve@2"], "cut 'tokencarve@2': a part is missing"),
        (["tokencarve@2=4", "--keep=3"], "not allowed with argument"),
    ):
        assert says in failure(generate.main, [*flags, *wrong], capsys)


def test_published_schedules_are_methods_at_an_average():
    """No model is needed to see what would be compared."""
    config = types.SimpleNamespace(text=types.SimpleNamespace(num_layers=32), tokens_per_image=576)

    def cells(keep, *names):
        compared = AtOneBudget(tuple((method, keep) for method in methods.named(names)))
        return compared.cells(
            types.SimpleNamespace(config=config, square=True, schedule=lambda cuts: cuts), length=0, visual=576
        )

    found = cells(192, "tokencarve", "sparsevlm-schedule", "pyramiddrop-schedule")
    assert found["sparsevlm-schedule"].cuts == parse(sparsevlm_schedule(32, 576, 192), num_layers=32)
    tokens = {"vanilla": 576, "tokencarve": 192, "sparsevlm-schedule": 113, "pyramiddrop-schedule": 9}
    assert {name: cell.tokens for name, cell in found.items()} == tokens
    assert [cell.average for cell in found.values()] == pytest.approx([576, 216, 206.5, 192], abs=0.1)  # published
    with pytest.raises(CommandError, match=r"keep=64: pyramiddrop: .* cannot be reached"):
        cells(64, "pyramiddrop-schedule")
    with pytest.raises(CommandError, match="two have one name"):
        cells(64, "fastv", "fastv")


def test_eval_compares_several_with_methods(model, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [f"--model={model}", "--keep=5", "--limit=1", "--methods", "random", "--schedule"]
    assert evaluation.main([*flags, *SCHEDULE, "--schedule", "fastv@1=8", f"--out={out}"]) == 0
    report = json.loads((out / "results.json").read_text())
    rows = {row["method"]: row for row in report["methods"]}
    assert list(rows) == ["vanilla", "random", " ".join(SCHEDULE), "fastv@1=8"]
    assert [row["visual_tokens"] for row in rows.values()] == [VISUAL, 5, 4, 8]
    averages = [VISUAL, (2 * VISUAL + 5) / 3, (9 + 9 + 4) / 3, (VISUAL + 8 + 8) / 3]
    assert [row["layer_average"] for row in rows.values()] == pytest.approx(averages)
    assert f"fastv@1=8 {averages[3]:.1f}." in (out / "table.txt").read_text()
    for wrong, says in (
        (["fastv@1=17"], "schedule fastv@1=17: keep as a count must be in 1..16"),
        (["fastv@1"], "cut 'fastv@1': a part is missing"),
    ):
        assert says in failure(evaluation.main, [*flags, *wrong, f"--out={tmp_path / 'no'}"], capsys)
    few = [f"--model={model}", "--keep=5", "--limit=1", "--methods", "sparsevlm-schedule", f"--out={tmp_path / 'no'}"]
    assert "keep=5: a decoder of 3 layers has no room" in failure(evaluation.main, few, capsys)
