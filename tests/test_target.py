"""What a program is compiled for is an argument: its kernel is used everywhere, and no device is asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.engine import decode, plan, prefill
from models.engine.model import score
from models.engine.sampling import GREEDY
from models.engine.target import CPU, CUDA
from tests.tiny import PATCHES, make_inputs, make_llava

BLOCKS, LAYERS = 2, 5  # of the tower, up to its features, and of the decoder


@pytest.fixture(scope="module")
def half():
    """In half precision, with heads that cuDNN takes."""
    llava = make_llava(dtype=jnp.bfloat16, head_dim=16, rope_sections=(8,))
    return llava, llava.prompt(*make_inputs())


@pytest.fixture
def fused(monkeypatch):
    """How often cuDNN's kernel is asked for."""
    asked = []

    def kernel(query, *_, implementation, **__):
        asked.append(implementation)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    for name in ("devices", "local_devices", "default_backend"):
        monkeypatch.setattr(jax, name, lambda *_: pytest.fail("a device was asked for while tracing"))
    return asked


@pytest.mark.parametrize(("target", "times"), [(CUDA, 1), (CPU, 0)])
def test_every_layer_uses_the_targets_kernel(half, fused, target, times):
    llava, prompt = half
    # New functions, so that no trace of another target is found again.
    jax.eval_shape(lambda *a: score.__wrapped__(*a, target=target), llava, prompt)
    assert len(fused) == times * (BLOCKS + LAYERS)
    fused.clear()
    cuts = plan.resolve(plan.parse(0.4, num_layers=LAYERS), PATCHES)
    options = {"plan": cuts, "decode_capacity": 32, "target": target}
    prefilled = jax.eval_shape(lambda *a: prefill.prefill.__wrapped__(*a, **options), llava, prompt, np.uint32(0))
    assert len(fused) == times * (BLOCKS + LAYERS - 1)  # the last layer asks for the last token alone, with a mask
    decode_config = decode.DecodeConfig(GREEDY, (), 0)
    first = jax.eval_shape(
        functools.partial(decode.first_token, decode_config=decode_config), prefilled.logits, np.uint32(0)
    )
    state = decode.Generating(prefilled.cache, *first)
    jax.eval_shape(functools.partial(decode.decode, size=32, decode_config=decode_config), llava, state, np.int32(3))
