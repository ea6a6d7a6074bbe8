"""Programs for NVIDIA GPUs, by the real compiler: `pytest -m cuda` where the extra `cuda` is installed, GPU or none."""

import pytest

from experiments.speed.ahead_of_time import Job, run
from tokencarve_jax.scores.subspace import SOUGHT

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("target", ["h100", "a100"])
def test_every_whole_attention_is_one_fused_kernel(target):
    job = Job(target, "llava-1.5-7b", layers=3)
    for found in run(job):
        prefill, decoding = found["prefill"], found["decode"]
        assert found["fits"]
        # Three blocks of the tower, and all layers but the last, which asks for one token with a mask.
        assert prefill["fused_attention"] == 3 + 2
        assert prefill["host"] == prefill["dynamic"] == prefill["loops"] == decoding["host"] == decoding["dynamic"] == 0
        assert decoding["loops"] == 1
        others = {name for name in prefill["calls"] if "cudnn" not in name}
        assert all("cusolver" in name or "cublas" in name for name in others), others
        assert bool(others) == (found["side"] == "carved")  # its score
        assert prefill["solver"] == (SOUGHT if others else 0)
