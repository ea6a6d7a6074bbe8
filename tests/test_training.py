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
from experiments.data.scenes import GRID, SceneObject, make_scene
from experiments.data.tiny_processor import PROMPT, build_processor
from experiments.train import new_model, write_model
from experiments.training.decoder import answer_logits, answer_loss, gaps, pooled
from experiments.training.pool import (
    IGNORE,
    NEAR_CLASSES,
    QuestionTokens,
    choose_patches,
    flatten_patches,
    near_objects,
)
from experiments.training.stages import STAGES, Stage, claim_folder, run_stage
from experiments.training.tower import deepen, normalise_patches, take_layer
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
    packed = answer_logits(llava, features, where, np.full(2, PATCHES), prefix, ids)
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


def test_second_turns_are_the_conversations_of_the_chat_template():
    """Half of the questions follow the one before them, as the processor's chat template puts it."""
    tokens, processor = QuestionTokens(), build_processor()
    objects = make_scene("train", 5).objects
    ids, targets = tokens.batch([objects], questions=6, short=0.0, turns=True, rng=np.random.default_rng(0))
    texts, answers = [], []
    for row, target in zip(ids[0], targets[0], strict=True):
        asked = int(np.flatnonzero(target != IGNORE)[0]) + 1
        texts.append(processor.tokenizer.decode(row[:asked]))
        answers.append(processor.tokenizer.decode(target[target != IGNORE], skip_special_tokens=True))
    for first, second in ((0, 1), (2, 3), (4, 5)):
        question = texts[first].strip().removesuffix(" ASSISTANT:")
        assert texts[second].startswith(texts[first])
        rest = texts[second][len(texts[first]) :].strip()
        said, asked = rest.split(" USER: ")
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
            {"role": "assistant", "content": answers[first].strip()},
            {"role": "user", "content": asked.removesuffix(" ASSISTANT:")},
        ]
        whole = processor.apply_chat_template(turns, add_generation_prompt=True)
        assert said == answers[first].strip()
        assert whole.split() == f"USER: <image> {texts[second]}".split()


def test_no_object_is_left_out_of_a_subset():
    kinds = np.zeros((3, 576), np.int8)
    for row, count in enumerate((0, 5, 40)):
        kinds[row, np.random.default_rng(row).choice(576, count, replace=False)] = 2
    chosen = choose_patches(kinds, 60, np.random.default_rng(0))
    assert (np.diff(chosen, axis=1) > 0).all()
    for row in range(3):
        assert set(np.flatnonzero(kinds[row])) <= set(chosen[row].tolist())
    assert choose_patches(kinds, 576, np.random.default_rng(0))[1].tolist() == list(range(576))


def test_patches_next_to_an_object_know_it():
    items = (
        SceneObject("sign", "green", "sign", "BOAT", 4, 6, 1, 4),
        SceneObject("shape", "blue", "ring", "", 6, 5, 2, 2),
    )
    near = near_objects(items).reshape(len(NEAR_CLASSES), GRID, GRID)
    letters = [2, 15, 1, 20]
    sign, ring = [1, 2, 0, *letters], [3, 3, 6, 0, 0, 0, 0]
    rows = {(4, 6): sign, (3, 5): sign, (5, 10): sign, (6, 5): ring, (8, 7): ring, (5, 4): ring, (2, 6): [0] * 7}
    rows |= {(5, 6): ring, (5, 8): sign}  # between both, and the nearer centre decides
    for place, want in rows.items():
        assert near[:, *place].tolist() == want, place
    assert (near[0] == 1).sum() + (near[0] == 3).sum() == 3 * 6 + 4 * 4 - 3  # three patches are next to both


@pytest.mark.parametrize("count", [24, 288])
def test_gaps_are_different_patches_in_order(count):
    kinds = np.zeros((40, GRID * GRID), np.int8)
    kinds[:, 100:130] = 1
    where = gaps(kinds, count, np.random.default_rng(0))
    assert where.shape == (40, count)
    assert (np.diff(where) > 0).all()
    assert (where[:, 0] >= 0).all()
    assert (where[:, -1] < 576).all()
    objects = (kinds[0][where] > 0).mean(1)
    assert objects.max() > 1.5 * np.median(objects)  # some rows favour objects
    runs = (np.diff(where) == 1).mean(1)
    assert runs.max() > runs.min() + 0.3  # some drop tokens one by one, some in regions


def test_pooled_features_stand_where_their_first_patch_was():
    features = np.arange(576, dtype=np.float32).reshape(1, 576, 1)
    means, first = pooled(features)
    assert means.shape == (1, 144, 1)
    assert first[0, :13].tolist() == [*range(0, 24, 2), 48]
    np.testing.assert_array_equal(means[0, :, 0], first[0] + np.mean([0, 1, 24, 25]))


def test_a_deeper_tower_is_the_same_and_looks_around():
    deep = new_model(0).vision_tower
    late = take_layer(deep)
    patches = np.stack([flatten_patches(make_scene("train", index).image) for index in range(4)])
    x = deep.embed(normalise_patches(patches))
    depth = len(deep.layers)
    before = deep.encode(x, feature_layers=(depth - 1, depth)).features
    deepen(deep, late, patches)
    after = deep.encode(x, feature_layers=(depth - 1, depth, depth + 1)).features
    width = before.shape[-1] // 2
    chex.assert_trees_all_equal(after[..., :width], after[..., width : 2 * width])
    chex.assert_trees_all_close(after[..., width:], before, atol=1e-5)
    query, key, _ = late.heads(after[..., :width])
    attention = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key)[0] * query.shape[-1] ** -0.5, axis=-1)
    row, column = np.divmod(np.arange(576), GRID)
    inside = np.flatnonzero((np.minimum(row, column) > 5) & (np.maximum(row, column) < 18))
    aside = np.einsum("hqk,qk->h", attention[:, 1 + inside, 1:], column - column[inside][:, None]) / len(inside)
    below = np.einsum("hqk,qk->h", attention[:, 1 + inside, 1:], row - row[inside][:, None]) / len(inside)
    assert aside[1] - aside[0] > 0.7, aside
    assert below[3] - below[2] > 0.7, below


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
    near = Stage("near", "tower", 1, 2, 40, 1e-3, places=0.5, near=1.0)
    some = Stage("gaps", "decoder", 2, 2, 576, 1e-3, places=0.05, gaps=2, turns=True)
    monkeypatch.setattr(train, "STAGES", (tower, decoder, near, some))
    work, dest = tmp_path / "work", tmp_path / "model"
    flags = [f"--work={work}", f"--dest={dest}", "--questions=2"]
    assert train.main([*flags, "--pool=1"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: --pool 1: a step takes 2 different scenes; pass at least that many\n"
    )
    assert train.main([*flags, "--pool=3"]) == 0
    losses = [json.loads(line)["loss"] for line in (work / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 4
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
