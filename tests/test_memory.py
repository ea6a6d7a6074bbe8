"""Requests that cannot fit are refused before the work, in a line that says what fits."""

import dataclasses
import functools
import re
import types

import numpy as np
import pytest

from experiments.core import loading, memory
from experiments.core.loading import Inputs
from models.engine.target import CPU
from models.errors import CommandError
from tests.commands import save_checkpoint
from tests.tiny import CONFIG


def request(rows=2, length=10):
    side = CONFIG.vision.image_size
    ids = np.zeros((rows, length), np.int32)
    return Inputs(ids, np.zeros((rows, CONFIG.vision.num_channels, side, side), np.float32), ids)


def model(context=4096):
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, max_positions=context))
    table = types.SimpleNamespace(embedding={...: np.zeros(1, np.float32)})
    return types.SimpleNamespace(config=config, target=CPU, decoder=types.SimpleNamespace(embed_tokens=table))


def test_what_fits_is_a_number_that_fits(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 3_000_000)
    with pytest.raises(CommandError, match=r"20000 prompts of 10 tokens .* at a time fit") as caught:
        memory.check_request(model(), request(), 6, times=10_000)
    fits = int(re.search(r"(\d+) at a time", str(caught.value))[1])
    memory.check_request(model(), request(rows=fits), 6)
    with pytest.raises(CommandError):
        memory.check_request(model(), request(rows=fits + 1), 6)


def test_the_estimate_is_a_floor():
    """Of what is there for certain: pixels and the cache."""
    side, text = CONFIG.vision.image_size, CONFIG.text
    pixels = 4 * CONFIG.vision.num_channels * side**2
    cache = 2 * text.num_layers * 16 * text.num_kv_heads * text.head_dim * 4
    assert memory.request_bytes(CONFIG, length=16, entries=1, itemsize=4) > pixels + cache
    more = [memory.request_bytes(CONFIG, length=length, entries=1, itemsize=4) for length in (10**6, 2 * 10**6)]
    assert more[1] - more[0] >= cache / 16 * 10**6


def test_the_context(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.check_request(model(16), request(), 6)
    with pytest.raises(CommandError, match=r"10 tokens and the model's context is 16: at most 6 new ones fit"):
        memory.check_request(model(16), request(), 7)
    with pytest.raises(CommandError, match=r"context is 10: none fits"):
        memory.check_request(model(10), request(), 1)


def test_weights(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(CommandError, match=r"the weights take .* and 1e\+03 B of memory are free"):
        memory.check_config(CONFIG, 4)


def test_what_cannot_fit_is_refused_before_the_weights_are_read(monkeypatch, tmp_path):
    model = save_checkpoint(tmp_path / "model")
    monkeypatch.setattr(loading, "from_pretrained", lambda *_, **__: pytest.fail("the weights were read"))
    refused = functools.partial(loading.load, str(model), dtype="float32")
    with pytest.raises(CommandError, match=r"at least 33 tokens and the model's context is \d+: at most \d+ new"):
        refused(request=memory.Request(new_tokens=10**8, images=2))
    with pytest.raises(CommandError, match=r"^10000000 prompts of at least 17 tokens with room for 4 more .* fit$"):
        refused(request=memory.Request(new_tokens=4, rows=10**7, images=1))
    with pytest.raises(pytest.fail.Exception, match="the weights were read"):
        refused(request=memory.Request(new_tokens=4, rows=2, images=1))


def test_this_machine_says_what_is_free():
    assert 2**20 < memory.available() < 2**50
