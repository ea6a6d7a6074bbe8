"""Models under the settings that careful users of JAX have on."""

import functools

import jax
import numpy as np
import pytest

from models.engine import decode, plan, prefill
from models.engine.model import score
from models.engine.target import CPU
from tests.tiny import make_inputs, make_llava
from tokencarve_jax import COMPRESSORS

SCHEDULES = {
    "whole": (),
    "window": ((2, "fastv", 9),),
    "blocks of the tower": (("tower", "tome", 13),),
    "behind the tower": (("tower", "vispruner", 9),),
    "input": (("input", "prumerge", 9),),
    "two layers": ((2, "tokencarve", 9), (3, "dart", 4)),
    "calibrated": (plan.Cut(2, COMPRESSORS["tokencarve"], 7, calibrated=True, earlier="full"),),
    "positions": (plan.Cut(2, COMPRESSORS["sparsevlm"], 7, positions="median"),),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_models_are_traced_under_strict_promotion(name):
    model = make_llava(sliding_window=9 if name == "window" else None)
    prompt = model.prompt(*make_inputs())
    cuts = plan.resolve(plan.parse(SCHEDULES[name], num_layers=5), 25, images=1)
    run = functools.partial(prefill.prefill, plan=cuts, decode_capacity=8, target=CPU)
    decoding = decode.DecodeConfig.of(model.config)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        done = jax.eval_shape(run, model, prompt, np.uint32(0))
        state = jax.eval_shape(lambda done: decode.begin(done, 0, decode_config=decoding), done)
        step = functools.partial(decode.decode, size=4, decode_config=decoding)
        jax.eval_shape(step, model, state, np.int32(4))
        if name in ("whole", "window"):
            jax.eval_shape(functools.partial(score, target=CPU), model, prompt)


def test_answers_and_logits_come_under_a_transfer_guard():
    model, (ids, pixels, mask) = make_llava(), make_inputs()
    how = {"attention_mask": mask, "max_new_tokens": 3, "carve": ((2, "fastv", 9),)}
    tokens, logits = model.generate(ids, pixels, **how), model(ids, pixels, mask)  # what compiling moves is JAX's
    with jax.transfer_guard("disallow"):
        again, same = model.generate(ids, pixels, **how), model(ids, pixels, mask)
    np.testing.assert_array_equal(tokens, again)
    np.testing.assert_array_equal(logits, same)
