"""What only an accelerator can show: `pytest -m gpu` on a machine with one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc
from models.nn.attention import attend
from tests.oracle import carve as oracle_carve
from tests.test_carve import inputs
from tests.tiny import make_inputs, make_llava

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu():
    return jax.devices("gpu")[0]


@pytest.mark.parametrize("information", ["svd", "gram", "jacobi", "subspace"])
def test_carving_on_the_gpu_keeps_the_tokens_of_float64(gpu, information):
    tokens, attention = inputs(576, 1024, 2)
    with jax.default_device(gpu):
        carved = jax.jit(lambda t, a: tc.carve(t, a, keep=128, information=information))(tokens, attention)
    assert carved.tokens.devices() == {gpu}
    for row in range(2):
        want = oracle_carve(np.asarray(tokens[row], np.float64), np.asarray(attention[row], np.float64), 128)
        shared = np.isin(np.asarray(carved.indices[row]), want[1]).mean()
        assert shared >= (0.999 if information == "svd" else 0.95)


@pytest.mark.parametrize("carve", [None, 6])
def test_generation_on_the_gpu_gives_the_tokens_of_the_cpu(gpu, carve):
    ids, pixels, mask = make_inputs(2, (9, 4), (1, 2))
    cpu = jax.devices("cpu")[0]
    tokens = []
    for device in (cpu, gpu):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            llava = jax.device_put(make_llava(), device)
            out = llava.generate(ids, pixels, attention_mask=mask, max_new_tokens=8, carve=carve)
        tokens.append(np.asarray(out).tolist())
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_one_fused_kernel(gpu, causal):
    rng = np.random.default_rng(0)
    heads = [jnp.asarray(rng.normal(size=(2, 300, count, 64)), jnp.bfloat16) for count in (8, 4, 4)]
    program = jax.jit(lambda *heads: attend(*heads, causal=causal, kernel="cudnn"))
    assert "cudnn" in program.lower(*heads).compile().as_text()
    exact = attend(*(x.astype(jnp.float32) for x in heads), causal=causal)
    np.testing.assert_allclose(program(*heads).astype(jnp.float32), exact, atol=3e-2)


def test_bfloat16_logits_on_the_gpu_stay_near_float32(gpu):
    ids, pixels, mask = make_inputs(2, (9, 4), (1, 2))
    with jax.default_device(gpu):
        exact, coarse = make_llava(), make_llava(dtype=jnp.bfloat16)
        want, got = np.asarray(exact(ids, pixels, mask)), np.asarray(coarse(ids, pixels, mask))
    assert np.abs(got - want).max() <= 0.1 * np.abs(want).max()
