"""`python -m models.check`: what it measures, and when it says FAIL."""

import numpy as np
import pytest
import torch
import transformers

from models import check
from tests import families
from tests.checkpoints import randomise
from tests.commands import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    randomise(model, 0)
    model.save_pretrained(folder)
    return folder


def run(folder, capsys, *flags):
    status = check.main([str(folder), "--against=transformers", "--max-new-tokens=8", "--prompt-tokens=200", *flags])
    out = capsys.readouterr().out.splitlines()
    return status, out


def test_pass(checkpoint, capsys):
    status, out = run(checkpoint, capsys)
    assert status == 0
    assert out[-1] == "PASS"
    assert int(out[0].split()[1]) > 200 + 16
    assert float(out[1].split()[5]) < 1e-8
    assert out[2].split()[3] == "none"


@pytest.mark.parametrize(
    ("name", "visual"), [("llava-v1.6-mistral-7b", 36 + 8 * 13), ("llava-onevision-qwen2-0.5b", 25 + 6 * 9)]
)
def test_pass_on_images_of_any_resolution(tmp_path, capsys, name, visual):
    """The photograph is 427 x 640, whole and in tiles without their padding, which OneVision makes fewer."""
    families.make(name, tmp_path / "model", words=True)
    status, out = run(tmp_path / "model", capsys)
    assert (status, out[-1]) == (0, "PASS")
    assert int(out[0].split()[1]) > 200 + visual


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_pass_in_half_precision(checkpoint, capsys, dtype):
    """Its limit holds with room on random weights; greedy tokens may part there."""
    found = check.compare(checkpoint, dtype=dtype, prompt_tokens=200, steps=1)
    assert found.kl < check.LIMITS[dtype]


@pytest.mark.parametrize(
    ("weight", "value"), [("model.norm.weight", 1.01), ("model.layers.0.self_attn.q_proj.weight", 0.98)]
)
def test_fail(checkpoint, capsys, monkeypatch, weight, value):
    """A weight that is off by one or two percent on one side."""
    load = transformers.AutoModelForImageTextToText.from_pretrained

    def off(*args, **options):
        model = load(*args, **options)
        with torch.no_grad():
            model.get_submodule("model.language_model").get_parameter(weight.removeprefix("model.")).mul_(value)
        return model

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", off)
    status, out = run(checkpoint, capsys)
    assert (status, out[-1]) == (1, "FAIL")


def test_a_token_that_differs_fails(checkpoint, capsys, monkeypatch):
    ours = check.run_jax

    def other(*args, **options):
        logits, tokens = ours(*args, **options)
        return logits, np.concatenate([tokens[:1] + 1, tokens[1:]])

    monkeypatch.setattr(check, "run_jax", other)
    status, out = run(checkpoint, capsys)
    assert (status, out[-1]) == (1, "FAIL")
    assert out[2].split()[3:5] == ["number", "1"]


def test_nan_fails(checkpoint, capsys, monkeypatch):
    ours = check.run_jax

    def broken(*args, **options):
        logits, tokens = ours(*args, **options)
        logits = np.array(logits)
        logits[7] = np.nan
        return logits, tokens

    monkeypatch.setattr(check, "run_jax", broken)
    status, out = run(checkpoint, capsys)
    assert (status, out[-1]) == (1, "FAIL")
    assert "nan nats, at token 8" in out[1]


def test_divergence():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 3, (2, 5, 7)).astype(np.float32)
    p, q = torch.tensor(ours).double().log_softmax(-1), torch.tensor(theirs).double().log_softmax(-1)
    want = torch.nn.functional.kl_div(p, q, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(check.divergence(ours, theirs), want, rtol=1e-9)
    np.testing.assert_allclose(check.divergence(ours, ours + 3), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "want"), [([1, 2], [1, 2], None), ([1, 3], [1, 2], 1), ([1], [1, 2], 1), ([0, 1], [5], 0)]
)
def test_first_difference(ours, theirs, want):
    assert check.first_difference(np.array(ours), np.array(theirs)) == want


def test_sources_that_are_refused(tmp_path, capsys):
    assert check.main([str(tmp_path), "--against=transformers"]) == 1
    assert "has neither model.safetensors" in capsys.readouterr().err
    assert check.main([str(tmp_path), "--against=transformers", "--max-new-tokens=0"]) == 1
    assert "must be at least 1" in capsys.readouterr().err
