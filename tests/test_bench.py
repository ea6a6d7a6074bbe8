"""The benchmark command: its counts against the compiler's, its output, and every bad input in one line. No times."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench
from experiments.core.results import format_seconds
from experiments.metrics import costs
from experiments.reports import html as html_report
from experiments.speed import capacity, measure, presets
from models import compile_cache
from models.engine import plan, prefill
from models.engine.target import CPU
from tests import tiny
from tests.commands import failure
from tokencarve_jax.scores.information import DEFAULT, ROUTES

SHALLOW = dataclasses.replace(  # every layer is compiled, a dozen times over
    tiny.CONFIG,
    vision=dataclasses.replace(tiny.CONFIG.vision, num_layers=2),
    text=dataclasses.replace(tiny.CONFIG.text, num_layers=2, num_heads=4),
    feature_layers=(1,),
)
# Wide enough that the matrix products, which alone are counted, are nearly all there is to compute.
WIDE = dataclasses.replace(
    SHALLOW,
    vision=dataclasses.replace(SHALLOW.vision, hidden_size=192, intermediate_size=352, num_heads=4, image_size=60),
    text=dataclasses.replace(
        SHALLOW.text,
        hidden_size=256,
        intermediate_size=416,
        num_heads=8,
        num_kv_heads=4,
        head_dim=32,
        rope_sections=(16,),
        vocab_size=999,
    ),
)


@pytest.fixture(scope="module")
def llava():
    return presets.random_llava(WIDE, jnp.float32)


@pytest.fixture
def micro(monkeypatch):
    """`--preset=small` is tiny here, in the other process too."""
    monkeypatch.setattr(presets, "PRESETS", types.MappingProxyType({"small": SHALLOW}))
    monkeypatch.setattr(measure, "PROBE_SIZES", {"cpu": (2**14, 16)})
    return SHALLOW


@pytest.mark.parametrize(
    "carve",
    [None, ((1, "random", 10),), (("input", "random", 10),), (("tower", "random", 9),), (("tower", "tome", 55),)],
)
def test_flops_agree_with_the_compiler(llava, carve):
    ids, pixels = presets.inputs(WIDE, batch=1, prompt_tokens=30)
    prompt = presets.on_device(llava, ids, pixels)
    # Cutting at random computes nothing: what is counted is the model.
    cuts = plan.resolve(plan.parse(carve, num_layers=WIDE.text.num_layers), WIDE.tokens_per_image)
    lowered = prefill.prefill.lower(llava, prompt, np.uint32(0), plan=cuts, decode_capacity=32, target=CPU)
    counted = costs.prefill_flops(WIDE, ids.shape[1], cuts.cuts)
    assert 0.94 < counted / lowered.compile().cost_analysis()["flops"] <= 1


@pytest.fixture(scope="module")
def prefilled(llava):
    """Three carved rows."""
    ids, pixels = presets.inputs(WIDE, batch=3, prompt_tokens=30)
    assert ids.shape == (3, 30 + WIDE.tokens_per_image)
    return llava.prefill(presets.on_device(llava, ids, pixels), carve=((1, "random", 10),), decode_capacity=0)


def test_step_bytes_agree_with_the_arrays(llava, prefilled):
    cache, slots = prefilled.cache, 30 + 10
    weights = jax.tree.leaves((llava.decoder.layers, llava.decoder.norm, llava.decoder.lm_head))
    assert costs.decoder_weights(WIDE) == sum(leaf.size for leaf in weights)
    assert 3 * costs.cache_bytes(WIDE, slots, 4) == cache.nbytes
    # Two new tokens: one step, whose own slot is the only new one.
    total = costs.step_bytes(WIDE, batch=3, prompt_slots=slots, new_tokens=2, itemsize=4)
    new = 3 * (2 * costs.cache_bytes(WIDE, 1, 4) + 256 * 4)
    assert total == sum(leaf.nbytes for leaf in weights) + cache.nbytes + new


def test_random_weights_compute_finite_numbers(prefilled):
    assert np.isfinite(prefilled.logits).all()
    assert np.std(prefilled.logits) > 0
    half = jax.tree.leaves(presets.random_llava(tiny.CONFIG, jnp.bfloat16))
    assert {leaf.dtype for leaf in half} == {jnp.dtype(jnp.bfloat16)}


def test_presets_have_the_sizes_of_the_published_models():
    sizes = {name: costs.decoder_weights(config) for name, config in presets.PRESETS.items()}
    embedding = {name: config.text.vocab_size * config.text.hidden_size for name, config in presets.PRESETS.items()}
    assert round((sizes["llava-1.5-7b"] + embedding["llava-1.5-7b"]) / 1e9, 2) == 6.74
    assert round((sizes["llava-1.5-13b"] + embedding["llava-1.5-13b"]) / 1e9, 2) == 13.02
    seven = presets.PRESETS["llava-1.5-7b"]
    cuts = plan.resolve(plan.parse(0.222, num_layers=32), seven.tokens_per_image).cuts
    limit = costs.prefill_flops(seven, 652) / costs.prefill_flops(seven, 652, cuts)
    assert 2.5 < limit < 2.7


@pytest.mark.parametrize(("fixed", "per_row", "room"), [(100, 7, 1000), (100, 7, 106), (5, 1000, 1005), (0, 1, 4097)])
def test_largest_batch_is_the_largest(fixed, per_row, room):
    asked = []

    def need(batch):
        asked.append(batch)
        return fixed + per_row * batch + batch % 3  # not quite a line

    found = capacity.largest(need, room)
    assert found == max((batch for batch in range(1, 5000) if need(batch) <= room), default=0)
    assert len(asked) - 4999 < 12


def test_memory_needed_grows_with_the_batch(llava):
    sizes = [
        capacity.needed(llava, batch, carve=((1, "random", 10),), prompt_tokens=30, new_tokens=40) for batch in (1, 2)
    ]
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(llava))
    assert weights < sizes[0] < sizes[1] < 2 * sizes[0]


def test_the_command_compares_and_writes_everything_down(micro, tmp_path, capsys):
    argv = [
        "--keep=0.4",
        "--batch-size=2",
        "--prompt-tokens=9",
        "--max-new-tokens=3",
        "--repeats=2",
        f"--out={tmp_path}",
    ]
    assert bench.main([*argv, "--against=transformers"]) == 0
    out = capsys.readouterr().out
    for words in ("generate, one token", "faster than transformers", "bandwidth bound", "limit by FLOPs", "KV cache"):
        assert words in out
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["kind"] == "bench"
    assert (found["settings"]["kept"], found["settings"]["visual_tokens"]) == (10, 25)
    assert found["transformers"]["attention"] == "sdpa"
    # The tower of transformers has all its layers and a pooled output, and so has this one: one count.
    assert found["transformers"]["parameters"] == found["parameters"]
    assert min(found["floors"]["bytes_per_second"].values()) > 0
    (cell,) = found["cells"]
    assert cell["batch"] == 2
    assert cell["carving"]["cache_share"] == pytest.approx((9 + 10) / (9 + 25))
    assert cell["carving"]["speed_up_limit"] > 1
    assert len(cell["carving"]["alone"]["seconds"]) == 2
    page = html_report.render(tmp_path)
    for name in ("uncompressed", "carved", "transformers"):
        side = cell[name]
        for timed in ("prefill", "step", "generate"):
            assert len(side[timed]["seconds"]) == 2
            assert side[timed]["fastest"] == min(side[timed]["seconds"]) > 0
        assert min(side["tokens_per_second"], side["peak"]) > 0
        assert format_seconds(side["prefill"]["median"]) in page
    carved, speeds = cell["carved"], cell["speeds"]["bandwidth"]
    assert carved["cache"]["slots"] == 19
    shares = [carved["step_bytes"] / s / v for s, v in zip(carved["step"]["seconds"], speeds, strict=True)]
    assert carved["decode_share"] == pytest.approx(sum(shares) / 2)  # the median of two rounds
    assert carved["step_bytes"] < cell["uncompressed"]["step_bytes"]
    pairs = zip(cell["transformers"]["prefill"]["seconds"], carved["prefill"]["seconds"], strict=True)
    assert carved["faster"]["prefill"]["median"] == pytest.approx(sum(torch / ours for torch, ours in pairs) / 2)
    low, high = carved["faster"]["prefill"]["quartiles"]
    assert f"({low:.2f} .. {high:.2f})" in out


def test_compiling_is_timed_and_not_read_from_the_disk(micro, capsys, monkeypatch):
    monkeypatch.setattr(compile_cache, "keep_on_disk", lambda: pytest.fail("compiled programs of an earlier run"))
    failure(bench.main, ["--max-new-tokens=1"], capsys)


def test_alone_it_runs_too_and_finds_the_largest_batch(micro, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(capacity, "limit", lambda: 700)
    monkeypatch.setattr(capacity, "needed", lambda _, batch, *, carve, **__: (100 if carve else 300) * batch)
    # Both the prefill and carving alone take the route that was asked for.
    monkeypatch.setitem(ROUTES, DEFAULT, lambda _: pytest.fail("the default route"))
    argv = [
        "--keep=5",
        "--max-new-tokens=2",
        "--repeats=1",
        "--prompt-tokens=3",
        "--information=norm",
        f"--out={tmp_path}",
    ]
    assert bench.main([*argv, "--largest-batch", "--no-generate"]) == 0
    out = capsys.readouterr().out
    assert "transformers" not in out
    assert "generate" not in out
    found = json.loads((tmp_path / "results.json").read_text())["largest_batch"]
    want = {"uncompressed": 2, "carved": 7}
    assert {side: (one["computed"], one["verified"]) for side, one in found.items()} == {
        side: (batch, batch) for side, batch in want.items()
    }


def test_a_batch_that_does_not_fit_is_a_line_and_not_the_end(micro, tmp_path, capsys, monkeypatch):
    def scarce(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    monkeypatch.setattr(prefill, "prefill", scarce)
    assert bench.main(["--max-new-tokens=2", "--batch-size", "1", "2", f"--out={tmp_path}"]) == 0
    assert "batch 1: JAX runs out of memory\n" in capsys.readouterr().out
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert cells == [{"batch": batch, "error": "JAX runs out of memory"} for batch in (1, 2)]


def test_what_programs_may_use_is_more_than_what_arrays_take():
    array = jnp.ones(2**20)
    assert array.nbytes < capacity.limit() < 2**50


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--preset=llava-2"], "invalid choice: 'llava-2'"),
        (["--batch-size", "1", "0"], "'0' is not a whole number of at least 1"),
        (["--keep=1.0"], "leaves all 25 visual tokens"),
        (["--keep=26"], "keep=26: keep as a count must be"),
        (["--prompt-tokens=1"], "a prompt has at least 2 tokens"),
        (["--max-new-tokens=1"], "at least 2 new tokens are needed"),
    ],
)
def test_bad_flags_give_one_line(micro, argv, words, capsys):
    assert words in failure(bench.main, argv, capsys)
