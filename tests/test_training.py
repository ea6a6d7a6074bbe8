"""The trainer: packed questions are the same computation as separate prompts, and an interruption changes nothing."""

import io
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import train
from experiments.core import loading
from experiments.data.scenes import make_scene
from experiments.data.tiny_processor import PROMPT, build_processor
from experiments.train import new_model, write_model
from experiments.training.decoder import answer_logits, answer_loss
from experiments.training.pool import IGNORE, QuestionTokens, choose_patches, flatten_patches
from experiments.training.stages import STAGES, Stage, claim_folder, run_stage
from experiments.training.tower import normalise_patches
from models.errors import CommandError
from models.llava import Llava
from models.nn.clip import patchify
from tests.tiny import IMAGE_TOKEN, PATCHES, make_llava


def test_packed_questions_equal_separate_prompts():
    llava = make_llava()
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 3, 30, 30)).astype(np.float32)
    prefix, ids = np.array([9, 11]), rng.integers(8, 101, (2, 3, 7)).astype(np.int32)
    features = llava.vision_tower(jnp.asarray(pixels), feature_layers=llava.config.feature_layers).features[:, 1:]
    where = np.broadcast_to(np.arange(PATCHES), (2, PATCHES))
    packed = answer_logits(llava, features, where, prefix, ids, num_visual=PATCHES)
    for image in range(2):
        for question in range(3):
            prompt = np.concatenate([prefix, np.full(PATCHES, IMAGE_TOKEN), ids[image, question]])[None]
            alone = llava(prompt, pixels[image : image + 1])[0, -7:]
            chex.assert_trees_all_close(packed[image, question], alone, atol=5e-5)


def test_a_subset_of_patches_keeps_its_places():
    llava = make_llava()
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1, 3, 30, 30)).astype(np.float32)
    patches = patchify(jnp.asarray(pixels), 6)
    where = jnp.asarray([[3, 8, 24]], jnp.int32)
    whole = llava.vision_tower.embed(patches)
    part = llava.vision_tower.embed(patches[:, where[0]], where)
    chex.assert_trees_all_close(part[:, 1:], whole[:, 1:][:, where[0]], rtol=1e-6)
    chex.assert_trees_all_close(part[:, 0], whole[:, 0], rtol=1e-6)


def test_training_pixels_are_the_processors():
    image = make_scene("train", 3).image
    processor = build_processor()
    want = patchify(jnp.asarray(processor.image_processor(image, return_tensors="np")["pixel_values"]), 14)
    got = normalise_patches(jnp.asarray(flatten_patches(image)[None]))
    chex.assert_trees_all_close(got, want, atol=1e-5)


def test_training_ids_are_the_processors():
    scene = make_scene("train", 5, questions=12)
    tokens, rng = QuestionTokens(), np.random.default_rng(0)
    ids, targets = tokens.batch([scene.objects], questions=12, short=0.0, rng=rng)
    processor = build_processor()
    for row, target in zip(ids[0], targets[0], strict=True):
        asked = int(np.flatnonzero(target != IGNORE)[0]) + 1
        answer = target[target != IGNORE]
        assert answer[-1] == processor.tokenizer.eos_token_id
        text = processor.tokenizer.decode(row[:asked])
        question = text[: text.index(" ASSISTANT")]
        out = processor(images=scene.image, text=PROMPT.format(question=question), return_tensors="np")["input_ids"][0]
        assert out.tolist() == [*tokens.prefix, *[4] * 576, *row[:asked]]
        assert row[asked : asked + len(answer) - 1].tolist() == answer[:-1].tolist()  # the answer, shifted by one


def test_no_object_is_left_out_of_a_subset():
    kinds = np.zeros((3, 576), np.int8)
    for row, count in enumerate((0, 5, 40)):
        kinds[row, np.random.default_rng(row).choice(576, count, replace=False)] = 2
    chosen = choose_patches(kinds, 60, np.random.default_rng(0))
    assert (np.diff(chosen, axis=1) > 0).all()
    for row in range(3):
        assert set(np.flatnonzero(kinds[row])) <= set(chosen[row].tolist())
    assert choose_patches(kinds, 576, np.random.default_rng(0))[1].tolist() == list(range(576))


def test_only_answers_count():
    logits = jnp.zeros((1, 2, 4, 5)).at[0, 0, 1, 3].set(50.0).at[0, 0, 2, 2].set(50.0).at[0, 1, 0, 4].set(50.0)
    targets = jnp.asarray([[[IGNORE, 3, 2, IGNORE], [IGNORE, IGNORE, 1, IGNORE]]])
    loss, metrics = answer_loss(logits, targets)
    np.testing.assert_allclose(loss, np.log(5) / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["token"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["answer"], 1 / 2, rtol=1e-6)


def test_the_command_trains_a_model_that_loads(tmp_path, monkeypatch, capsys):
    """Both parts, with few scenes; what it is good for is nothing."""
    tower = Stage("tower", "tower", 2, 2, 12, 1e-3, places=0.5)
    decoder = Stage("decoder", "decoder", 2, 2, 12, 1e-3, (1.0, 0.5), places=0.05)
    monkeypatch.setattr(train, "STAGES", (tower, decoder))
    work, dest = tmp_path / "work", tmp_path / "model"
    flags = [f"--work={work}", f"--dest={dest}", "--questions=2"]
    assert train.main([*flags, "--pool=1"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: --pool 1: a step takes 2 different scenes; pass at least that many\n"
    )
    assert train.main([*flags, "--pool=3"]) == 0
    losses = [json.loads(line)["loss"] for line in (work / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    before = new_model(0)
    after = loading.load(str(dest), dtype="float32").llava
    for part in ("vision_tower", "projector", "decoder"):
        was, now = (jax.tree.leaves(nnx.state(getattr(model, part))) for model in (before, after))
        assert not any(np.array_equal(*pair) for pair in zip(was, now, strict=True) if pair[0].ndim > 1), part


class Interrupted(Exception):
    """Stands in for Ctrl-C."""


def test_an_interrupted_stage_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.training.stages.SAVE_EVERY", 4)
    stage = Stage("toy", "tower", 11, 1, 1, 0.05)

    def loss_fn(model, batch):
        loss = jnp.mean((batch @ model["w"] - 1.0) ** 2)
        return loss, {"half": loss / 2}

    def batch_at(step):
        return np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32)

    def cut_off(step):
        if step == 6:
            raise Interrupted
        return batch_at(step)

    # The weights are donated to each step, so every run starts from its own.
    def start():
        return {"w": jnp.arange(3.0)}

    log = io.StringIO()
    whole = run_stage(stage, 0, start(), loss_fn, batch_at, tmp_path / "whole", log)
    assert [json.loads(line)["step"] for line in log.getvalue().splitlines()] == [11]
    with pytest.raises(Interrupted):
        run_stage(stage, 0, start(), loss_fn, cut_off, tmp_path / "cut", io.StringIO())
    resumed = run_stage(stage, 0, start(), loss_fn, batch_at, tmp_path / "cut", io.StringIO())
    chex.assert_trees_all_equal(whole, resumed)
    assert not np.allclose(whole["w"], start()["w"])


def test_a_folder_belongs_to_one_run(tmp_path):
    settings, stages = {"pool": 8, "seed": 0}, (Stage("toy", "tower", 11, 1, 1, 0.05),)
    claim_folder(tmp_path / "work", settings, stages)
    claim_folder(tmp_path / "work", settings, stages)  # the same run goes on
    with pytest.raises(CommandError, match=r"other settings \(pool\)$"):
        claim_folder(tmp_path / "work", settings | {"pool": 9}, stages)
    with pytest.raises(CommandError, match=r"\(toy\)"):
        claim_folder(tmp_path / "work", settings, (Stage("toy", "tower", 12, 1, 1, 0.05),))


def test_a_written_model_loads_bit_for_bit(tmp_path):
    llava = new_model(3)
    write_model(llava, tmp_path)
    again = Llava.from_pretrained(tmp_path)
    assert again.config == llava.config
    chex.assert_trees_all_equal(jax.tree.leaves(llava), jax.tree.leaves(again))


def test_stages_have_names_of_their_own():
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert [stage.part for stage in STAGES] == sorted((stage.part for stage in STAGES), reverse=True)
