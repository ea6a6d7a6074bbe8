"""Programs for TPUs, by the real compiler: `pytest -m tpu` where the extra `tpu` is installed, TPU or none."""

import dataclasses

import pytest

from experiments.metrics import costs
from experiments.speed.ahead_of_time import Job, run
from tokencarve_jax.scores.subspace import SOUGHT

pytestmark = pytest.mark.tpu

V5E = Job("v5e:2x2", "small", decoding=False)
MESH = dataclasses.replace(V5E, preset="llava-1.5-13b", layers=2, mesh=(1, 4), sides=("carved",))


def counted_flops(job, side):
    return costs.prefill_flops(job.config, job.prompt_tokens + job.config.tokens_per_image, job.cuts(side))


def check(found):
    """What every program for a TPU must be."""
    prefill = found["prefill"]
    assert found["fits"]
    assert not [name for name in prefill["calls"] if "cudnn" in name or "cusolver" in name or "lapack" in name]
    assert prefill["host"] == 0
    assert prefill["dynamic"] == 0
    assert prefill["loops"] == 0
    assert prefill["solver"] == (SOUGHT if found["side"] == "carved" else 0)


def test_carving_saves_the_operations_that_are_counted():
    both = {found["side"]: found for found in run(V5E)}
    for found in both.values():
        check(found)
    counted = both["uncompressed"]["prefill"]["flops"] / both["carved"]["prefill"]["flops"]
    expected = counted_flops(V5E, "uncompressed") / counted_flops(V5E, "carved")
    assert expected > 1.05
    assert counted == pytest.approx(expected, rel=0.05)
    for side, found in both.items():
        assert 0.9 < found["prefill"]["flops"] / counted_flops(V5E, side) < 1.05


def test_a_layer_on_a_mesh_adds_up_twice():
    (found,) = run(MESH)
    check(found)
    blocks, layers = max(MESH.config.feature_layers), MESH.config.text.num_layers
    assert (blocks, layers) == (2, 2)
    assert found["prefill"]["all_reduces"] == 2 * blocks + 2 * layers + 1  # and once in the projector
    # A quarter of the products and of the weights but for the embeddings of patches, and what has no weights.
    assert found["prefill"]["flops"] == pytest.approx(counted_flops(MESH, "carved") / 4, rel=0.1)
    whole = 2 * (costs.decoder_weights(MESH.config) + MESH.config.text.vocab_size * MESH.config.text.hidden_size)
    assert found["prefill"]["arguments"] == pytest.approx(whole / 4, rel=0.1)
