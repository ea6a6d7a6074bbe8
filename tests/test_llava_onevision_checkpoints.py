"""LLaVA-OneVision's configs, every field of them, its processor, and the commands on a folder of that family."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

import models
from experiments import generate
from models.engine.visual import TowerRequest
from models.errors import CheckpointError, CommandError, ConfigError
from models.families.llava_onevision import LlavaOnevision, LlavaOnevisionConfig
from models.io.table import load_weights
from models.nn.siglip import SiglipVisionConfig
from models.processor import load_processor
from tests import checkpoints, families
from tests.families import photographs
from tests.test_families import as_torch
from tests.test_llava_onevision import BATCHES, HF, NAME, TOLERANCE

INPUTS = BATCHES["few tiles"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("onevision")
    families.make(NAME, path / "model", words=True)
    return path / "model"


@pytest.mark.parametrize(
    ("part", "field", "value", "said"),
    [
        (None, "vision_feature_select_strategy", "default", "the grids of 'llava_onevision' need 'full'"),
        (None, "vision_aspect_ratio", "anyres", "expected anyres_max_ and a number of tiles"),
        (None, "video_token_index", 2000, "expected another than 2000 in the vocabulary"),
        (None, "video_token_index", 99999, "expected another than 2000 in the vocabulary"),
        (None, "image_grid_pinpoints", [[75, 76]], "expected multiples of 75 pixels"),
        ("vision_config", "vision_use_head", True, "vision_use_head is true; supported is false"),
        ("vision_config", "model_type", "clip_vision_model", "only 'siglip_vision_model' is supported"),
        ("vision_config", "patch_size", 80, "0 patches; expected 1 to"),
        ("text_config", "use_sliding_window", True, "use_sliding_window is True; supported is false"),
    ],
)
def test_configs_that_are_refused(part, field, value, said):
    hf = families.narrow(NAME)
    setattr(hf if part is None else getattr(hf, part), field, value)
    with pytest.raises(ConfigError, match=said):
        LlavaOnevision.read_config(hf, {})


MISFIT, OTHER, COUNT = "weights do not fit", "other visual tokens", "another number of visual tokens"
# A value that differs from the checkpoint's, and what must come of it.
VISION_FIELDS = {
    "hidden_size": (40, MISFIT),
    "intermediate_size": (51, MISFIT),
    "num_layers": (2, MISFIT),
    "num_heads": (4, OTHER),
    "num_channels": (4, MISFIT),
    "image_size": (90, MISFIT),
    "patch_size": (13, MISFIT),
    "activation": ("quick_gelu", OTHER),
    "layer_norm_eps": (1e-2, OTHER),
}
OUTER_FIELDS = {
    "image_token_id": (5, COUNT),
    "video_token_id": (5, COUNT),
    "max_tiles": (1, COUNT),
    "image_grid_pinpoints": (((150, 75),), COUNT),
    "feature_layers": ((2,), OTHER),
    "projector_activation": ("gelu_pytorch_tanh", OTHER),
    "projector_bias": (False, MISFIT),
    "keep_class_token": (None, "test_configs_that_are_refused"),
    "eos_token_ids": (None, "tests/test_parity.py"),
    "pad_token_id": (None, "tests/test_parity.py"),
}


def tokens(folder, config):
    """Visual tokens of a batch with an image in tiles and a video."""
    model = checkpoints.abstract(config, family=LlavaOnevision)
    model = load_weights(model, folder, LlavaOnevision.table(config), dtype=np.float32)
    prompt = model.prompt(**INPUTS)
    with jax.disable_jit():  # one operation at a time, so that configs share what is compiled
        return np.asarray(model.visual(prompt.pixel_values, TowerRequest()).tokens)


def test_every_field_counts(folder):
    config = dataclasses.replace(models.auto.family_of(folder)[1], image_token_id=HF.image_token_id)
    assert {field.name for field in dataclasses.fields(SiglipVisionConfig)} == set(VISION_FIELDS)
    assert {field.name for field in dataclasses.fields(LlavaOnevisionConfig)} == {"vision", "text", *OUTER_FIELDS}
    baseline = tokens(folder, config)
    for name, (value, outcome) in (VISION_FIELDS | OUTER_FIELDS).items():
        if name in VISION_FIELDS:
            other = dataclasses.replace(config, vision=dataclasses.replace(config.vision, **{name: value}))
        else:
            other = dataclasses.replace(config, **{name: value})
        if outcome == MISFIT:
            with pytest.raises(CheckpointError):
                tokens(folder, other)
        elif outcome == OTHER:
            assert np.abs(tokens(folder, other) - baseline).max() > TOLERANCE, name
        elif outcome == COUNT:
            with pytest.raises(ValueError, match="image placeholders per row"):
                tokens(folder, other)


# The processor

TEXTS = ["USER: <image>\n what is on the sign? ASSISTANT:", "where <image> and <image> is"]


def test_gives_what_transformers_gives(folder):
    """Images in one list are cut into tiles each; those in a list of their own row are not, where they are several."""
    first, *others = photographs()
    ours = load_processor(folder)
    theirs = families.onevision_processor(HF)
    theirs.tokenizer, theirs.image_processor, theirs.chat_template = ours.tokenizer, ours.image_processor, "x"
    theirs.image_token, theirs.image_token_id = "<image>", ours.tokenizer.convert_tokens_to_ids("<image>")
    theirs.video_token, theirs.video_token_id = "<video>", -1
    for images in ([first, *others], [[first], others]):
        got = ours(images=images, text=TEXTS, padding=True, return_tensors="np")
        want = theirs(images=images, text=TEXTS, padding=True, return_tensors="np")
        assert set(got) == set(want)
        for name, array in want.items():
            np.testing.assert_array_equal(got[name], array)
    model = models.from_pretrained(folder)
    with torch.no_grad():
        want = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder)(**as_torch(got)).logits
    real = got["attention_mask"].astype(bool)
    np.testing.assert_allclose(np.asarray(model(**got))[real], want.numpy()[real], rtol=0, atol=TOLERANCE)
    assert model.generate(**got, max_new_tokens=16, carve=0.222).shape == (2, 16)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("processor_config.json", {"num_image_tokens": "x"}, "num_image_tokens is 'x'; expected a whole number"),
        ("processor_config.json", {"vision_aspect_ratio": 9}, "expected anyres_max_ and a number of tiles"),
        ("processor_config.json", {"vision_feature_select_strategy": "default"}, "supported is 'full'"),
        ("preprocessor_config.json", {"size": {"height": 2**20, "width": 75}}, "size.height is"),
        ("preprocessor_config.json", {"image_grid_pinpoints": [[7500, 7500]]}, "make more than 64 tiles"),
    ],
)
def test_a_damaged_processor_is_refused(folder, tmp_path, file, change, said):
    for path in [*folder.glob("*.json"), *folder.glob("*.jinja")]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CommandError, match=said):
        load_processor(tmp_path)


def test_the_command_answers(folder, tmp_path, capsys):
    image = tmp_path / "wide.png"
    photographs()[2].save(image)
    argv = [f"--model={folder}", f"--image={image}", "--prompt=What is on the sign?", "--max-new-tokens=4", "--keep=9"]
    assert generate.main([*argv, f"--image={image}"]) == 0
    assert f"{2 * 26} -> 9" in capsys.readouterr().out  # two images are a tile and a newline each
