"""`experiments.generate --chat`: conversations through the checkpoint's own chat template, streaming."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from experiments import generate
from experiments.core import loading
from experiments.core.conversation import Conversation
from experiments.data.scenes import make_scene
from experiments.data.tiny_processor import PATCH, build_tokenizer
from experiments.generate import questions
from models import convert
from tests import families
from tests.commands import failure, save_checkpoint

# As published with the llava-hf checkpoints of these decoders.
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] "
    "| selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}"
    "{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> '}}"
    "{% endif %}{% endfor %}"
)
TALK = "Where is the red circle?\n\n  What is there?  \nexit\nIs this asked?\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "scene.png"
    Image.fromarray(make_scene("test", 0).image).save(path)
    return path


def test_a_conversation(model, image, capsys, monkeypatch):
    """Each answer is what `generate` gives for the whole conversation so far."""
    monkeypatch.setattr("sys.stdin", io.StringIO(TALK))
    argv = [f"--model={model}", f"--image={image}", f"--image={image}", "--chat", "--keep=6", "--max-new-tokens=5"]
    assert generate.main(argv) == 0
    answers = capsys.readouterr().out.splitlines()

    checkpoint, pixels, turns, want = loading.load(str(model), dtype="float32"), Image.open(image), [], []
    for question in ("Where is the red circle?", "What is there?"):
        content = [{"type": "text", "text": question}]
        turns.append({"role": "user", "content": content if turns else [{"type": "image"}] * 2 + content})
        inputs = checkpoint.encode_turns([[pixels, pixels]], [turns])
        tokens = checkpoint.llava.generate(inputs.input_ids, inputs.pixel_values, max_new_tokens=5, carve=6)
        want += checkpoint.decode(tokens)
        turns.append({"role": "assistant", "content": [{"type": "text", "text": want[-1]}]})
    assert answers == want
    assert all(want)


def test_a_conversation_with_a_converted_next(image, tmp_path, capsys, monkeypatch):
    """Images of any resolution, from a folder that holds all that it takes."""
    families.make("llava-v1.6-vicuna-7b", tmp_path / "hf", words=True)
    convert.convert(tmp_path / "hf", tmp_path / "orbax")
    wide = tmp_path / "wide.png"
    Image.open(image).crop((0, 100, 336, 200)).save(wide)
    answers = []
    for name in ("hf", "orbax"):
        monkeypatch.setattr("sys.stdin", io.StringIO("Where is the red circle?\n"))
        argv = [f"--model={tmp_path / name}", f"--image={image}", f"--image={wide}", "--chat", "--keep=0.1"]
        assert generate.main([*argv, "--max-new-tokens=3"]) == 0
        answers.append(capsys.readouterr().out.splitlines())
    assert answers[0] == answers[1]
    assert len(answers[0]) == 1


def test_lines_that_are_refused_do_not_end_it(model, image, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nan <image> more\n\udcff\nWhere?\n"))
    assert generate.main([f"--model={model}", f"--image={image}", "--chat", "--max-new-tokens=2"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err.splitlines() == [
        "what is asked holds <image>, which stands for an image; leave it out",
        "what is asked is not UTF-8: '\\udcff'",
    ]


def test_answers_stream(model, image):
    checkpoint = loading.load(str(model), dtype="float32")
    talk = Conversation(checkpoint, [Image.open(image)], carve=None, max_new_tokens=6)
    answer = talk.ask("What is there?")
    first = next(answer)
    assert talk.turns == []  # it is not over
    pieces = [first, *answer]
    assert len([piece for piece in pieces if piece]) > 2
    assert talk.turns[1]["content"][0]["text"] == "".join(pieces)


@pytest.mark.parametrize(
    ("template", "want"),
    [
        (VICUNA, "USER: <image>\n<image>\nwhat is on? ASSISTANT: red USER: and? ASSISTANT:"),
        (MISTRAL, "[INST] <image>\n<image>\nwhat is on? [/INST] red</s> [INST] and? [/INST]"),
    ],
    ids=["vicuna", "mistral"],
)
def test_the_checkpoints_own_template_and_placeholders(template, want):
    """Of LLaVA-NeXT: two photographs of different size, each with its number of placeholders."""
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 56},
            crop_size={"height": 56, "width": 56},
            image_grid_pinpoints=[[56, 112], [112, 112]],
        ),
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    seen = []
    apply = processor.apply_chat_template
    processor.apply_chat_template = lambda *args, **options: seen.append(apply(*args, **options)) or seen[-1]
    turns = [
        {"role": "user", "content": [*[{"type": "image"}] * 2, {"type": "text", "text": "what is on?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "and?"}]},
    ]
    images = [np.zeros((40, 80, 3), np.uint8), np.zeros((70, 60, 3), np.uint8)]
    llava = SimpleNamespace(config=SimpleNamespace(text=SimpleNamespace(max_positions=999)))
    inputs = loading.Checkpoint(None, llava, processor).encode_turns([images], [turns])
    assert seen == [want]
    assert inputs.image_sizes.tolist() == [[40, 80], [70, 60]]
    assert (inputs.input_ids == processor.image_token_id).sum() == (16 + 4 * 9) + (16 + 8 * 7)
    assert inputs.pixel_values.shape == (2, 5, 3, 56, 56)


def test_terminals_are_prompted(capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert list(questions(Terminal("a\n"))) == ["a"]  # the end of input ends it
    assert capsys.readouterr() == ("", "> > ")


def test_flags_that_do_not_go_together(model, image, capsys, monkeypatch):
    flags = [f"--model={model}", f"--image={image}", "--chat"]
    assert "not allowed with" in failure(generate.main, [*flags, "--prompt=What?"], capsys)
    assert "goes with --prompt" in failure(generate.main, [*flags, "--picture=x.png", "--keep=3"], capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO("What is there?\n"))
    assert "must be in 1..16" in failure(generate.main, [*flags, "--keep=17"], capsys)
