"""The processor of Qwen2.5-VL and Qwen3-VL without torchvision, and the commands on a folder of these families."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images

import models
from experiments import generate
from models import check
from models.errors import CommandError
from models.processor import load_processor
from tests import qwen
from tests.commands import failure

TEXTS = ["USER: <image>\n what is on the sign? ASSISTANT:", "where <image> and <image> is"]


PROCESSORS = {
    "qwen2_5_vl": transformers.Qwen2_5_VLProcessor,
    "qwen3_vl": transformers.Qwen3VLProcessor,
}


@pytest.fixture(scope="module", params=PROCESSORS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    path = tmp_path_factory.mktemp(family)
    qwen.make(path, family, words=True)
    return path


first_family = pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)  # the second runs the same code


@pytest.fixture(scope="module")
def photographs():
    whole = Image.fromarray(load_sample_images().images[0])
    return [whole.crop((0, 0, 500, 427)), whole.crop((100, 0, 220, 400)), whole.crop((0, 100, 640, 250))]


def inputs_of(folder, photographs):
    return load_processor(folder)(images=photographs, text=TEXTS, padding=True, return_tensors="np")


def test_gives_what_transformers_gives(family, folder, photographs):
    got, ours = inputs_of(folder, photographs), load_processor(folder)
    theirs = object.__new__(PROCESSORS[family])  # its constructor asks for torchvision
    theirs.tokenizer, theirs.image_processor, theirs.chat_template = ours.tokenizer, ours.image_processor, "x"
    theirs.image_token, theirs.image_token_id = "<image>", qwen.VOCABULARY.index("<image>")
    theirs.video_token, theirs.video_token_id = "<video>", -1
    want = theirs(images=photographs, text=TEXTS, padding=True, return_tensors="np")
    assert set(got) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
    assert got["image_grid_thw"].tolist() == [[1, 14, 16], [1, 28, 8], [1, 6, 32]]


def test_what_it_gives_is_what_the_model_takes(family, folder, photographs):
    inputs = inputs_of(folder, photographs)
    model = models.from_pretrained(folder)
    theirs = qwen.FAMILIES[family][1].from_pretrained(folder)
    with torch.no_grad():
        want = theirs(**{name: torch.tensor(array) for name, array in inputs.items()}).logits.numpy()
    real = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(np.asarray(model(**inputs))[real], want[real], rtol=0, atol=1e-4)
    assert model.generate(**inputs, max_new_tokens=16, carve=0.222).shape == (2, 16)


@first_family
def test_placeholders_and_images_must_be_as_many(folder, photographs):
    with pytest.raises(ValueError, match="holds 3 times <image> for 2 images"):
        inputs_of(folder, photographs[:2])


@first_family
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_pixels": 2**40}, "size.longest_edge is"),
        ({"image_processor_type": "SamImageProcessor"}, "which no supported model has"),
        ({"patch_size": "x"}, "no processor that can be|fails on a small image"),
    ],
)
def test_a_damaged_processor_is_refused(folder, tmp_path, change, said):
    for path in [*folder.glob("*.json"), *folder.glob("*.jinja")]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CommandError, match=said):
        load_processor(tmp_path)


def test_agrees_with_transformers_on_a_photograph(folder, capsys):
    argv = [str(folder), "--against=transformers", "--prompt-tokens=60", "--max-new-tokens=12"]
    assert check.main(argv) == 0
    assert capsys.readouterr().out.rstrip().endswith("PASS")


def test_the_command_answers(family, folder, photographs, tmp_path, capsys):
    image = tmp_path / "wide.png"
    photographs[2].save(image)
    argv = [f"--model={folder}", f"--image={image}", "--prompt=What is on the sign?", "--max-new-tokens=4"]
    assert generate.main([*argv, "--keep=9"]) == 0
    assert "48 -> 9" in capsys.readouterr().out
    assert generate.main([*argv, "--keep=0.5", "--method=divprune"]) == 0
    capsys.readouterr()
    for more, said in (
        (["--keep=9", "--method=hiprune"], f"hiprune needs middle_attention, which {family} models do not have"),
        (["--image-aspect-ratio=pad"], "the checkpoint's own way is to keep their shape"),
    ):
        assert said in failure(generate.main, [*argv, *more], capsys)
