"""The study that times the prefill of a video and counts its cache."""

import dataclasses
import json

import pytest

from experiments.studies import video_prefill
from tests.commands import failure

FLAGS = ["--size=112x56", "--methods", "evs", "--repeats=2"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    config = video_prefill.CONFIG
    width = {"hidden_size": 64, "intermediate_size": 64, "num_layers": 2}
    text = dataclasses.replace(config.text, **width, num_heads=1, num_kv_heads=1)
    vision = dataclasses.replace(config.vision, **width, full_blocks=(1,), out_hidden_size=64)
    monkeypatch.setattr(video_prefill, "CONFIG", dataclasses.replace(config, text=text, vision=vision))


def test_slots_and_bytes_are_those_of_what_is_left(tmp_path, capsys):
    assert video_prefill.main([*FLAGS, f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["settings"]["size"] == [112, 56]
    assert {name: len(times) for name, times in found["seconds"].items()} == {"tower": 2, "uncarved": 2, "evs": 2}
    whole, left = found["cache"]["uncarved"], found["cache"]["evs"]
    # 16 frames of 2 x 4 tokens between 15 and 25 of text, up to a multiple of 16; a tenth of 128 is 13
    assert (whole["slots"], left["slots"]) == (176, 176 - 128 + 13)
    bytes_of_slot = 2 * 2 * 64 * 4  # layers, keys and values, width, float32
    assert [whole["prompt"], left["allocated"]] == [176 * bytes_of_slot, (61 + 32) * bytes_of_slot]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("evs")).split()
    assert (row[1], row[-4:-2]) == ("13", ["34.7", "%"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--keep=0.02"], "evs keeps the first frame whole: of 16 frames of 8 tokens"),
        (["--size=100x56"], "'100x56': width and height are multiples of 28"),
        (["--size=x56"], "'x56' is not WIDTHxHEIGHT, such as 448x224"),
        (["--methods", "hiprune"], "hiprune needs middle_attention, which qwen2_5_vl models do not have"),
    ],
)
def test_bad_input_gives_one_line(flags, said, tmp_path, capsys):
    assert said in failure(video_prefill.main, [*FLAGS, f"--out={tmp_path}", *flags], capsys)
