"""The shipped model's tokenizer and processor, read back from disk as a user reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaProcessor

from experiments.data.scenes import SIZE, make_scene
from experiments.data.tiny_processor import PROMPT, VOCABULARY, build_tokenizer, normalise, save_processor

TOKENIZER = build_tokenizer()
IMAGE = VOCABULARY.index("<image>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_processor(path)
    return path


@pytest.fixture(scope="module")
def processor(folder: Path) -> LlavaProcessor:
    return AutoProcessor.from_pretrained(folder)


def test_the_folder_reads_back(folder: Path, processor: LlavaProcessor) -> None:
    assert isinstance(processor, LlavaProcessor)
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    saved = json.loads((folder / "processor_config.json").read_text())
    # This name resolves to whichever of the two backends, torchvision or Pillow, is installed.
    assert saved["image_processor"]["image_processor_type"] == "CLIPImageProcessor"
    assert processor.tokenizer.get_vocab() == TOKENIZER.get_vocab() == {token: i for i, token in enumerate(VOCABULARY)}


def test_the_tokenizer_stays_itself_beside_a_llava_config(folder: Path, tmp_path: Path) -> None:
    """A config of type llava must not make the tokenizer a Llama tokenizer."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = "Is the red circle above or below the blue star? BIRD 407"
    for tokenizer in (AutoTokenizer.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path).tokenizer):
        assert tokenizer(text).input_ids == TOKENIZER(text).input_ids


def test_special_tokens_have_fixed_ids() -> None:
    assert [TOKENIZER.unk_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert IMAGE == 4
    assert len(set(VOCABULARY)) == len(VOCABULARY) == len(TOKENIZER)


def test_a_batch_becomes_placeholders_and_pixels(processor: LlavaProcessor) -> None:
    scene = make_scene("test", 0)
    prompts = [PROMPT.format(question=q) for q in ("What word is on the red sign?", "Where is the red circle?")]
    batch = processor(images=[scene.image] * 2, text=prompts, return_tensors="np", padding=True)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 589)
    assert ((batch["input_ids"] == IMAGE).sum(1) == 576).all()
    assert batch["pixel_values"].shape == (2, 3, SIZE, SIZE)
    assert (batch["attention_mask"][:, :2] == [[1, 1], [0, 0]]).all()
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens[:4] == ["<s>", "USER", ":", "<image>"]
    assert tokens[579:] == ["what", "word", "is", "on", "the", "red", "sign", "?", "ASSISTANT", ":"]


def test_the_chat_template_is_llavas(processor: LlavaProcessor) -> None:
    question = {
        "role": "user",
        "content": [{"type": "text", "text": "What word is on the red sign?"}, {"type": "image"}],
    }
    prompt = processor.apply_chat_template([question], add_generation_prompt=True)
    assert prompt == PROMPT.format(question="What word is on the red sign?")
    assert prompt == "USER: <image>\nWhat word is on the red sign? ASSISTANT:"
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "BIRD"}]
    assert processor.apply_chat_template(turns) == "USER: Hello ASSISTANT: BIRD "


def test_our_pixels_are_the_processors_bit_for_bit(folder: Path, processor: LlavaProcessor) -> None:
    images = np.stack([make_scene("train", i).image for i in range(3)])
    images[2] = np.random.default_rng(0).integers(0, 256, images[2].shape)
    with_pillow = AutoProcessor.from_pretrained(folder, backend="pil").image_processor
    theirs = with_pillow(list(images), return_tensors="np")["pixel_values"]
    ours = normalise(images)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)
    pictures = [Image.fromarray(image) for image in images]
    np.testing.assert_allclose(
        processor.image_processor(pictures, return_tensors="np")["pixel_values"], ours, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "answer", ["BIRD", "JAZZ", "407", "090", "7", "top left", "bottom right", "yes", "no", "above"]
)
def test_answers_survive_the_round_trip(answer: str) -> None:
    ids = TOKENIZER(answer, add_special_tokens=False).input_ids
    assert len(ids) == (len(answer) if answer[0].isupper() or answer[0].isdigit() else len(answer.split()))
    assert TOKENIZER.decode(ids) == answer
    assert TOKENIZER.decode([1, *ids, 2, 3], skip_special_tokens=True) == answer


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("Where is the red circle?", "where is the red circle?"),
        ("USER: the word is BIRD, the number 407.", "USER: the word is BIRD, the number 407."),
        ("BIRD407", "BIRD 407"),
    ],
)
def test_sentences_decode_with_their_spaces(text: str, decoded: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False).input_ids) == decoded


def test_every_question_is_known_word_by_word() -> None:
    for index in range(40):
        for question in make_scene("train", index, questions=24).questions:
            for text in (question.text, question.short, question.answer, PROMPT.format(question=question.text)):
                assert TOKENIZER.unk_token_id not in TOKENIZER(text).input_ids, text


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_can_be_encoded(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert ids[0] == TOKENIZER.bos_token_id
    assert all(0 <= i < len(VOCABULARY) for i in ids)
    assert isinstance(TOKENIZER.decode(ids), str)


def test_what_transformers_advises_is_not_shown():
    """PyTorch, which it asks for at its import, is not needed."""
    code = (
        "import sys; sys.modules['torch'] = None; from models.io.hub import read_hf_config; "
        "read_hf_config('experiments/tiny')"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS_")}
    argv, root = [sys.executable, "-c", code], Path(__file__).parents[1]
    done = subprocess.run(argv, cwd=root, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
