"""What is compiled and what is computed in vain, for prompts of LLaVA-1.5's size on a model of toy width."""

import collections
import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from models.engine import prefill
from tests.tiny import CONFIG, IMAGE_TOKEN, make_llava

BEFORE, VISUAL = 36, 576
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def model():
    vision = dataclasses.replace(CONFIG.vision, num_layers=1, image_size=48, patch_size=2, hidden_size=6)
    vision = dataclasses.replace(vision, num_heads=1, intermediate_size=6)
    config = dataclasses.replace(CONFIG, vision=vision, feature_layers=(1,))
    return make_llava(config=config, num_layers=3, num_heads=1, num_kv_heads=1)


def prompt(words, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(8, 101, BEFORE + words)
    ids = np.concatenate([text[:BEFORE], np.full(VISUAL, IMAGE_TOKEN), text[BEFORE:]])
    return ids[None], rng.standard_normal((1, 3, 48, 48)).astype(np.float32)


@contextlib.contextmanager
def compilations():
    """Counts what XLA compiles."""
    counted = []

    def count(event, seconds, **_):
        if event == COMPILED:
            counted.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


@pytest.mark.parametrize("carve", [None, 0.222])
def test_hardly_any_padding_is_computed(model, carve, monkeypatch):
    """At most 3 % of the tokens of any layer."""
    widths, before_layer = [], prefill.Prefill.before_layer

    def entered(flow, index, hidden):
        hidden = before_layer(flow, index, hidden)
        widths.append(hidden.shape[1])
        return hidden

    monkeypatch.setattr(prefill.Prefill, "before_layer", entered)
    jax.clear_caches()
    model.generate(*prompt(40), max_new_tokens=1, carve=carve)
    real = BEFORE + VISUAL + 40
    want = [real] * 3 if carve is None else [real, real, real - VISUAL + 128]
    assert len(widths) == len(want)
    for width, least in zip(widths, want, strict=True):
        assert least <= width <= least / 0.97


def test_a_hundred_questions_share_programs(model):
    """All are packed; two of each packed length are answered."""
    jax.clear_caches()
    rng, packed = np.random.default_rng(7), collections.Counter()
    with compilations() as counted:
        for number in range(100):
            ids, pixels = prompt(int(1.3 * int(rng.integers(10, 81))), number)
            length = model.prompt(ids, pixels).input_ids.shape[1]
            packed[length] += 1
            if packed[length] <= 2:
                model.generate(ids, pixels, max_new_tokens=1, carve=0.222)
    assert packed.total() == 100
    assert max(packed.values()) > 10
    assert 1 < len(counted) <= 8, len(counted)


def test_answers_of_any_length_share_programs(model):
    """Prefill, the token after it and the loop: nothing is computed on the way to the host."""
    jax.clear_caches()
    with compilations() as counted:
        lengths = {model.generate(*prompt(40), max_new_tokens=most, carve=0.222).shape[1] for most in (1, 2, 5, 8)}
    assert len(lengths) > 1
    assert len(counted) == 3


def test_compilations_are_counted():
    with compilations() as counted:
        for size in (3, 4, 3):
            jax.jit(lambda x: x * 2 + 1)(np.ones(size, np.float32)).block_until_ready()
    assert len(counted) >= 2
