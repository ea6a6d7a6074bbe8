"""The small trained model in experiments/tiny: what the README says of it, and the same answers from transformers."""

import json
import pathlib

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from experiments.core.loading import load
from experiments.data.scenes import FAMILIES, make_scene
from experiments.studies.hidden_states import visual_states
from tests import oracle
from tokencarve_jax import carve
from tokencarve_jax.scores.information import DEFAULT

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "tiny"
SCENES = 32
BATCH = 24
NEW = 8


@pytest.fixture(scope="module")
def checkpoint():
    return load(str(FOLDER), dtype="float32")


@pytest.fixture(scope="module")
def asked(checkpoint):
    """Batches of inputs and right answers, each scene asked once in every family."""
    scenes = [make_scene("test", index) for index in range(SCENES)]
    pairs = [(scene, question) for scene in scenes for question in scene.questions]
    return [
        (
            checkpoint.encode([[scene.image] for scene, _ in part], [question.text for _, question in part]),
            [question for _, question in part],
        )
        for part in (pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH))
    ]


def answers(checkpoint, asked, carve=None):
    said = []
    for inputs, _ in asked:
        tokens = checkpoint.llava.generate(
            inputs.input_ids,
            inputs.pixel_values,
            attention_mask=inputs.attention_mask,
            max_new_tokens=NEW,
            carve=carve,
        )
        said += checkpoint.decode(tokens)
    return said


@pytest.fixture(scope="module")
def vanilla(checkpoint, asked):
    return answers(checkpoint, asked)


def right(asked, said, family=None):
    questions = [question for _, part in asked for question in part]
    hits = [
        text == question.answer
        for question, text in zip(questions, said, strict=True)
        if family in (None, question.family)
    ]
    return np.mean(hits)


def test_transformers_loads_the_same_folder_and_gives_the_same_answers(asked, vanilla):
    processor = AutoProcessor.from_pretrained(FOLDER, backend="pil")
    reference = LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    said = []
    for inputs, _ in asked:
        with torch.inference_mode():
            out = reference.generate(
                input_ids=torch.tensor(inputs.input_ids),
                pixel_values=torch.tensor(inputs.pixel_values),
                attention_mask=torch.tensor(inputs.attention_mask),
                max_new_tokens=NEW,
                do_sample=False,
            )
        new = out[:, inputs.input_ids.shape[1] :]
        said += [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
    assert len(said) == SCENES * len(FAMILIES)
    assert said == vanilla


@pytest.mark.parametrize("family", FAMILIES)
def test_it_answers_at_least_nine_of_ten_in_each_family(asked, vanilla, family):
    assert right(asked, vanilla, family) >= 0.9


def test_random_tokens_cost_it_fifteen_points_so_that_methods_can_be_told_apart(checkpoint, asked, vanilla):
    said = answers(checkpoint, asked, carve=((2, "random", 64),))
    assert right(asked, vanilla) - right(asked, said) >= 0.15


def test_its_files_are_small_and_complete():
    names = {path.name for path in FOLDER.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "processor_config.json",
    } <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 15_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] >= 6
    assert (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2 == 576


@pytest.fixture(scope="module")
def states(checkpoint, asked):
    """Per layer and budget: tokens, attention, and what float64 keeps of every eighth row."""
    inputs, _ = asked[0]
    prompt = checkpoint.llava.prompt(inputs.input_ids, inputs.pixel_values, inputs.attention_mask)
    return [
        (
            tokens,
            attention,
            kept,
            [oracle.carve(*row, kept)[1] for row in zip(eighths(tokens), eighths(attention), strict=True)],
        )
        for tokens, attention in visual_states(checkpoint.llava, prompt)
        for kept in (64, 128)
    ]


def eighths(rows):
    return np.asarray(rows[::8])


@pytest.mark.parametrize(
    ("information", "mean", "least"), [(DEFAULT, 0.99, 0.93), ("gram", 0.99, 0.93), ("svd", 0.999, 0.99)]
)
def test_the_routes_choose_what_float64_chooses_on_its_hidden_states(states, information, mean, least):
    shared = []
    for tokens, attention, kept, wanted in states:
        indices = eighths(carve(tokens, attention, keep=kept, information=information).indices)
        shared += [len(set(want) & set(row.tolist())) / kept for want, row in zip(wanted, indices, strict=True)]
    assert len(shared) == 4 * 2 * BATCH // 8
    print(f"{information}: mean {np.mean(shared):.5f}, least {np.min(shared):.4f}")
    assert np.mean(shared) >= mean
    assert np.min(shared) >= least
