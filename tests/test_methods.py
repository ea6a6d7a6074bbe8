"""The methods that an evaluation compares: each leaves what its option says, read off transformers' own layers."""

import numpy as np
import pytest
import torch

from experiments import eval as evaluation
from experiments.core import methods
from models.llava import Llava
from tests import oracle
from tests.checkpoints import IMAGE, PATCHES, VISION, make_llava
from tests.commands import failure, save_checkpoint
from tokencarve_jax import COMPRESSORS

KEPT, WORDS = 6, 7


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Our model, a prompt, and transformers' hidden states, attention and attention output before layer 2."""
    folder = tmp_path_factory.mktemp("methods")
    theirs = make_llava(folder)
    theirs.set_attn_implementation("eager")
    rng = np.random.default_rng(3)
    ids = np.array([[5, *[IMAGE] * PATCHES, *rng.integers(3, 90, WORDS)]])
    pixels = rng.standard_normal((1, 3, *[VISION["image_size"]] * 2)).astype(np.float32)
    outputs = []
    attention = theirs.model.language_model.layers[1].self_attn
    hook = attention.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(ids),
            pixel_values=torch.tensor(pixels),
            output_hidden_states=True,
            output_attentions=True,
        )
    hook.remove()
    visual = slice(1, 1 + PATCHES)
    return {
        "llava": Llava.from_pretrained(folder),
        "inputs": (ids, pixels),
        "hidden": out.hidden_states[2][0, visual].numpy(),
        "attention": out.attentions[1][0, :, -1, visual].mean(0).numpy(),
        "output": outputs[0][0, visual].numpy(),
    }


def trend_removed(attention):
    slope, level = np.polyfit(np.arange(len(attention)), np.log(attention), 1)
    return attention / np.exp(level + slope * np.arange(len(attention)))


EXPECTED = {
    "tokencarve": lambda seen: {},
    "tokencarve-svd": lambda seen: {},
    "tokencarve-attention-only": lambda seen: {"weight": "1"},
    "tokencarve-information-only": lambda seen: {"weight": "0"},
    "tokencarve-calibrated": lambda seen: {},
    "tokencarve-no-merge": lambda seen: {"oversample": 1.0},
    "tokencarve-debias": lambda seen: {"attention": trend_removed(seen["attention"])},
    "tokencarve-norm": lambda seen: {"contribution": np.linalg.norm(seen["hidden"], axis=1)},
    "tokencarve-attention-output": lambda seen: {"contribution": oracle.information(seen["output"])},
}


def expected(seen, name):
    options = EXPECTED[name](seen)
    values, indices, assignment = oracle.carve(
        seen["hidden"], options.pop("attention", seen["attention"]), KEPT, **options
    )
    if name == "tokencarve-calibrated":  # what would be dropped joins the most similar survivor
        unit = seen["hidden"] / np.linalg.norm(seen["hidden"], axis=1, keepdims=True)
        nearest = (unit @ unit[indices].T).argmax(1)
        assignment = [near if row < 0 else row for row, near in zip(assignment, nearest.tolist(), strict=True)]
    return values, indices, assignment


@pytest.mark.parametrize("name", EXPECTED)
def test_it_leaves_what_its_option_says(seen, name):
    llava = seen["llava"]
    prefilled = llava.prefill(llava.prompt(*seen["inputs"]), carve=((2, name, KEPT),))
    _, indices, assignment = expected(seen, name)
    assert np.asarray(prefilled.cuts[0].indices)[0].tolist() == list(indices)
    assert np.asarray(prefilled.cuts[0].assignment)[0].tolist() == list(assignment)


def test_the_options_differ_on_this_prompt(seen):
    """Otherwise the test above proves little."""
    left = {name: tuple(expected(seen, name)[2]) for name in EXPECTED}
    assert len(set(left.values())) == len(EXPECTED) - 1  # "svd" and "gram" agree


def test_every_variant_is_tested():
    assert {name for name in COMPRESSORS if name.startswith("tokencarve")} == set(EXPECTED)
    assert set(methods.choices()) >= {*EXPECTED, "random"}


def test_an_evaluation_compares_those_that_were_named(tmp_path, capsys):
    folder, out = save_checkpoint(tmp_path / "model"), tmp_path / "out"
    names = ["tokencarve-no-merge", "tokencarve-attention-output"]
    argv = [f"--model={folder}", "--keep=5", "--limit=1", "--methods", *names, f"--out={out}"]
    assert evaluation.main(argv) == 0
    table = (out / "table.txt").read_text()
    assert [line.split()[0] for line in table.splitlines()[2:5]] == ["vanilla", *names]
    capsys.readouterr()
    line = failure(evaluation.main, [*argv[:3], "--methods", "tokencarve", f"--out={out}"], capsys)
    assert "methods" in line
    assert "--restart" in line
    line = failure(evaluation.main, [*argv[:3], "--methods", "magic", f"--out={out}"], capsys)
    assert "no method is named 'magic'" in line
    assert "tokencarve-debias" in line


def test_help_names_the_methods(capsys):
    with pytest.raises(SystemExit):
        evaluation.main(["--help"])
    text = "".join(capsys.readouterr().out.split())
    assert all(name in text for name in methods.choices())
