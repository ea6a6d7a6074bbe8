"""Compiling for what is not here, as far as no compiler for it is needed: flags, bounds, what is read off a program."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from experiments import bench
from experiments.metrics import costs
from experiments.speed import ahead_of_time, inspection, presets, programs, roofline, targets
from experiments.speed.ahead_of_time import Job
from models.engine import plan
from models.engine.target import CPU, TPU
from models.errors import CommandError
from models.io.table import abstract_model
from models.llava import Llava
from tests.commands import failure
from tests.tiny import CONFIG

SEVEN = presets.PRESETS["llava-1.5-7b"]
LENGTH = 36 + 576 + 40


def stages(config, keep, *, batch=1):
    cuts = plan.resolve(plan.parse(keep, num_layers=config.text.num_layers), config.tokens_per_image).cuts
    return roofline.stages(config, batch=batch, length=LENGTH, cuts=cuts, split=2, new_tokens=64, itemsize=2)


@pytest.mark.parametrize("keep", [None, 128])
def test_the_bounds_count_what_the_floors_count_but_for_causality(keep):
    *prefill, _ = stages(SEVEN, keep)
    cuts = plan.resolve(plan.parse(keep, num_layers=32), 576).cuts
    lengths = [LENGTH] * 31 if keep is None else [LENGTH] * 2 + [LENGTH - 448] * 29
    # Of the pairs in a layer, S^2, S (S + 1) / 2 are of a query and a key that is not behind it.
    unseen = sum(4 * (s * s - s * (s + 1) / 2) * 4096 for s in lengths)
    assert sum(stage.flops for stage in prefill) == pytest.approx(costs.prefill_flops(SEVEN, LENGTH, cuts) - unseen)


def test_the_bounds_read_every_weight_once():
    llava = abstract_model(lambda rngs: Llava(SEVEN, dtype=jnp.bfloat16, rngs=rngs))
    unread = (llava.decoder.embed_tokens, llava.vision_tower.layers[23:], llava.vision_tower.post_layernorm)
    count = sum(leaf.size for leaf in jax.tree.leaves(llava)) - sum(leaf.size for leaf in jax.tree.leaves(unread))
    for keep in (None, 128):
        *prefill, step = stages(SEVEN, keep)
        assert sum(stage.weights for stage in prefill) == pytest.approx(2 * count, rel=1e-3)  # biases and norms
        assert step.weights == 2 * costs.decoder_weights(SEVEN)


def test_the_larger_of_products_and_bytes_bounds_a_stage():
    chip = targets.Chip("tpu", flops=100.0, bandwidth=10.0, memory=0, target=TPU)
    stage = roofline.Stage("any", flops=1000.0, weights=80.0, rows=40.0)
    assert stage.seconds(chip, (1, 1)) == (10.0, 12.0)
    assert stage.seconds(chip, (2, 4)) == (1.25, 2.5)  # every part of "data" has all the weights
    found = roofline.summary([stage, dataclasses.replace(stage, flops=1300.0), stage], chip, (1, 1))
    assert [(row["ms"], row["limit"]) for row in found["stages"][:2]] == [(12e3, "memory"), (13e3, "compute")]
    assert found["prefill_ms"] == 25e3  # the last is a decoding step


def test_a_carved_prefill_on_an_h100_is_bound_by_its_weights():
    times = {keep: roofline.summary(stages(SEVEN, keep), targets.CHIPS["h100"], (1, 1)) for keep in (None, 128)}
    # By hand: 8.83 TFLOP less half of 31 layers' attention at 989.4 TFLOP/s; 404 MB of weights a layer at 3.35 TB/s.
    assert times[None]["prefill_ms"] == pytest.approx(8.82, abs=0.01)
    assert times[128]["prefill_ms"] == pytest.approx(4.64, abs=0.01)
    assert times[128]["stages"][-2]["limit"] == "memory"


TEXT = """
HloModule jit_prefill
body { ROOT %x.1 = (f32[2]{0}, s32[]) tuple(%a, %b) }
ENTRY main {
  %w = (f32[2]{0}, s32[]) while(%t), condition=%c, body=%body
  %f.1 = bf16[1,652,4096]{2,1,0:T(8,128)(2,1)} fusion(%p), kind=kLoop, calls=%g
  ROOT %f.2 = bf16[4]{0} fusion(%p), kind=kLoop, calls=%g
  %r = bf16[4]{0} all-reduce(%f.2), to_apply=%add
  %s = (bf16[4]{0}, bf16[4]{0}) all-reduce-start(%f.2), to_apply=%add
  %d = bf16[4]{0} all-reduce-done(%s)
  %g = bf16[4]{0} all-gather(%f.2), dimensions={0}
  %k = (bf16[4]{0}, u8[0]{0}) custom-call(%f.2), custom_call_target="__cudnn$fmhaSoftmax"
  %l = (f32[2,576,576]{1,2,0}, f32[2,576]{1,0}, s32[2]{0}) custom-call(%f.2), custom_call_target="cusolver_syevd_ffi"
  %h = s32[] custom-call(%f.2), custom_call_target="xla_ffi_python_gpu_callback"
  %o = token[] outfeed(%f.2, %tok)
  %y = f32[<=576,4]{1,0} dynamic-reshape(%f.2)
}
"""


class Program:
    """A compiled one, as far as anyone asks."""

    def __init__(self, text=TEXT):
        self.as_text = lambda: text

    def cost_analysis(self):
        return None

    def memory_analysis(self):
        sizes = {"argument": 7, "output": 5, "temp": 3, "alias": 2}
        return type("Memory", (), {f"{name}_size_in_bytes": size for name, size in sizes.items()})


def test_what_is_read_off_a_program():
    found = inspection.figures(Program())
    calls = found.pop("calls")
    assert calls == {"__cudnn$fmhaSoftmax": 1, "cusolver_syevd_ffi": 1, "xla_ffi_python_gpu_callback": 1}
    assert found == {
        "needed": 13,
        "arguments": 7,
        "temporaries": 3,
        "flops": None,
        "fused_attention": 1,
        "host": 2,
        "solver": 576,
        "loops": 1,
        "fusions": 2,
        "all_reduces": 2,
        "all_gathers": 1,
        "dynamic": 1,
    }


def test_quarters_that_a_solver_gives_are_of_a_whole_matrix():
    line = '%c = (f32[1,288]{1,0}, f32[1,288,288]{2,1,0}) custom-call(%x), custom_call_target="EighTpu"'
    assert inspection.figures(Program(line))["solver"] == 576
    assert inspection.figures(Program(line.replace("EighTpu", "cusolver_syevd_ffi")))["solver"] == 288


def test_a_model_of_shapes_compiles_and_needs_what_the_cache_and_weights_weigh():
    llava, placed = programs.abstract_llava(CONFIG, jnp.float32, jax.devices(), None)
    pair = programs.compile_pair(llava, 2, carve=6, prompt_tokens=9, new_tokens=32, target=CPU, placed=placed)
    assert pair.cache_bytes == 2 * costs.cache_bytes(CONFIG, 9 + 6 + 32, 4)
    weights = sum(leaf.size for leaf in jax.tree.leaves(llava)) * 4
    found = inspection.figures(pair.prefill)
    assert pair.needed >= found["needed"] > weights > 0
    assert found["host"] > 0  # LAPACK, on a CPU
    assert found["dynamic"] == found["all_reduces"] == 0
    assert inspection.figures(pair.decode)["loops"] >= 1


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--target=b7"], "--target=b7: expected one of a100, h100"),
        (["--target=v5e"], "expected one of"),
        (["--target=h100:2x2"], "expected one of"),
        (["--target=v5e:2x2", "--mesh=4"], "--mesh=4: expected DATAxMODEL"),
        (["--target=v5e:2x2", "--mesh=0x4"], "--mesh=0x4: expected DATAxMODEL"),
        (["--target=h100", "--against=transformers"], "--against is for measuring"),
        (["--target=h100", "--layers=1"], "needs at least 2"),
        (["--target=h100", "--keep=577"], "keep=577: keep as a count must be"),
        (["--target=h100", "--keep=1.0"], "leaves all 576 visual tokens"),
        (["--mesh=1x4"], "--mesh is for --target alone"),
        (["--layers=2"], "--layers is for --target alone"),
    ],
)
def test_bad_flags_give_one_line(installed, argv, words, capsys, tmp_path):
    assert words in failure(bench.main, [*argv, f"--out={tmp_path}"], capsys)


@pytest.mark.parametrize(("target", "extra"), [("h100", "cuda"), ("v5e:2x2", "tpu")])
def test_a_missing_compiler_names_its_extra(monkeypatch, target, extra, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    line = failure(bench.main, [f"--target={target}", f"--out={tmp_path}"], capsys)
    assert f"pip install -e '.[experiments,{extra}]'" in line


def test_what_the_compiling_process_refuses_is_raised_here(monkeypatch):
    monkeypatch.setattr(targets, "find", lambda _: None)  # here, not there
    with pytest.raises(CommandError, match="--target=b7: expected one of a100"):
        list(ahead_of_time.run(Job("b7", "small")))


def test_the_command_prints_and_writes_what_was_compiled(installed, monkeypatch, capsys, tmp_path):
    def run(job):
        assert job == Job("h100", "small", batch=(3,), information="norm", mesh=(1, 2))
        cut = {"bounds": {"stages": [{"stage": "all", "ms": 2.0, "limit": "memory"}], "prefill_ms": 2.0}, "batch": 3}
        part = inspection.figures(Program())
        fitting = {"fits": True, "needed": 13, "cache": 5, "seconds": {"prefill": 1.5, "decode": 1.0}}
        yield cut | fitting | {"side": "uncompressed", "prefill": part, "decode": part}
        yield cut | {"side": "carved", "fits": False, "compiler": "RESOURCE_EXHAUSTED"}

    monkeypatch.setattr(ahead_of_time, "run", run)
    argv = ["--target=h100", "--batch-size=3", "--information=norm", "--mesh=1x2", f"--out={tmp_path}"]
    assert bench.main(argv) == 0
    out = capsys.readouterr().out
    for words in (
        "uncompressed: fits",
        "carved: does not fit: RESOURCE_EXHAUSTED",
        "computed and not measured",
        "__cudnn$fmhaSoftmax 1",
        "nothing is run",
    ):
        assert words in out
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["kind"], found["measured"]) == ("bench-compiled", False)
    assert found["settings"]["mesh"] == [1, 2]
    assert [one["fits"] for one in found["compiled"]] == [True, False]
