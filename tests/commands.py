"""For tests of commands: a checkpoint folder that answers in milliseconds, and a run that must fail in one line."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from experiments.core.loading import Checkpoint
from experiments.data.scene_questions import SceneQuestions
from experiments.data.tiny_processor import VOCABULARY, build_processor
from models.families.llava import llava_config
from models.io.export import export_safetensors
from models.llava import Llava

SIDE = 56
VISUAL = 16
"""Visual tokens of one image."""
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


def save_checkpoint(folder: Path, *, strategy: str = "default", layers: int = 3) -> Path:
    """A random LLaVA of 4 x 4 patches, with the shipped model's words."""
    hf = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=14,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        ),
        image_token_index=VOCABULARY.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy=strategy,
    )
    llava = Llava(llava_config(hf), rngs=nnx.Rngs(3))
    llava.projector.linear_2.weight[...] = 12 * llava.projector.linear_2.weight[...]  # so that images matter
    llava.decoder.lm_head.weight[...] = llava.decoder.lm_head.weight[...].at[3].set(0)
    folder.mkdir()
    hf.save_pretrained(folder)
    export_safetensors(llava, Llava.table(llava.config), folder)
    processor = build_processor()
    processor.image_processor.size = {"shortest_edge": SIDE}
    processor.image_processor.crop_size = {"height": SIDE, "width": SIDE}
    processor.vision_feature_select_strategy = strategy
    processor.save_pretrained(folder)
    return folder


def answer_alone(checkpoint: Checkpoint, image: Any, question: str, carve: Any) -> str:
    """What a model says to one question in a batch of its own, asked of the library."""
    inputs = checkpoint.encode([[image]], [question])
    tokens = checkpoint.llava.generate(
        inputs.input_ids,
        inputs.pixel_values,
        attention_mask=inputs.attention_mask,
        relevance=inputs.relevance,
        max_new_tokens=SceneQuestions.max_new_tokens,
        carve=carve,
    )
    (text,) = checkpoint.decode(tokens)
    return text


def damage(source: Path, folder: Path, how: str) -> Path:
    """A copy of a checkpoint with something wrong."""
    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "config of another model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    elif how == "no processor":
        for path in folder.glob("*token*"):
            path.unlink()
        (folder / "processor_config.json").unlink()
    elif how == "no chat template":
        (folder / "chat_template.jinja").unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-7])
    elif how == "missing weight":
        del weights[Q_PROJ]
        save_file(weights, file)
    elif how == "surplus weight":
        save_file(weights | {"extra": np.ones(3, np.float32)}, file)
    elif how == "wrong shape":
        save_file(weights | {Q_PROJ: np.ones((5, 24), np.float32)}, file)
    else:
        raise ValueError(how)
    return folder


DAMAGES = {
    "no config": "has no config.json",
    "config of another model": "'bert'; supported are 'llava' and 'llava_next'",
    "no processor": "has no processor that can be loaded",
    "no chat template": "chat template",
    "truncated": "model.safetensors is damaged or incomplete",
    "missing weight": f"missing weight {Q_PROJ}",
    "surplus weight": "surplus weight extra",
    "wrong shape": f"{Q_PROJ} has shape [5, 24]; config.json asks for [24, 24]",
}

KEEPS = ("0", "1.5", "abc", "-3", "-0.5", "0.0", "nan", "inf", "1e-400", "", "12x", "True")


def failure(main: Callable[[Sequence[str]], int], argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; gives its one line on standard error."""
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert status not in (0, None)
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith("python -m experiments.")
    return err
