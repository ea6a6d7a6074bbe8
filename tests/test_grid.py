"""What a family says of its tokens reaches the cuts: their raster, rows and columns in positions, and evidence."""

import dataclasses

import jax
import numpy as np
import pytest

from models.engine import prefill
from models.engine.cuts import gather_evidence
from models.engine.plan import Cut, for_family, parse, resolve
from models.engine.prefill import embed
from models.engine.prompt import make_prompt
from models.engine.target import CPU
from tests import tiny
from tokencarve_jax import COMPRESSORS, EVIDENCE


def tokens(prompt, *, scope="joint", images):
    model = tiny.make_llava(num_layers=1)
    hidden, sequence, _ = embed(model, prompt)
    cut = Cut("input", COMPRESSORS["uniform"], 4, scope=scope)
    return gather_evidence(cut, hidden, sequence, {}, images=images)[0]


def test_the_raster_of_one_image_and_of_each_of_several():
    model = tiny.make_llava(num_layers=1)
    ids, pixels, mask = tiny.make_inputs(texts=(9, 4), images=(1, 1))
    assert tokens(model.prompt(ids, pixels, mask), images=1).grid == (1, 5, 5)
    ids, pixels, mask = tiny.make_inputs(texts=(9, 4), images=(2, 2))
    prompt = model.prompt(ids, pixels, mask)
    assert tokens(prompt, images=2, scope="image").grid == (1, 5, 5)
    assert tokens(prompt, images=2).grid is None  # two images are no raster, whatever their number


@pytest.mark.parametrize("masked", [False, True])
def test_a_family_says_its_own(masked):
    """16 x 36 beside each other; where one does not enter, there is no raster any more."""
    ids = np.array([[3, *[tiny.IMAGE_TOKEN] * 576, 4]])
    mask = np.ones(ids.shape)
    mask[0, 5] = not masked
    prompt = make_prompt(
        ids,
        None,
        mask,
        image_token_id=tiny.IMAGE_TOKEN,
        tokens_per_image=0,
        vocab_size=tiny.CONFIG.text.vocab_size,
        features_of=[np.arange(576)],
        grid=(1, 16, 36),
    )
    assert tokens(prompt, images=1).grid == (None if masked else (1, 16, 36))


CARVES = ["uniform@input=4", "fastv@1=4", "pooling@input=4,median"]


@pytest.fixture(scope="module")
def rows_and_columns():
    """A model whose positions have three axes (M-RoPE), and a prompt with an image of 5 x 5."""
    model = tiny.make_llava(num_layers=2, rope_sections=(1, 2, 2))
    prompt = model.prompt(*tiny.make_inputs(texts=(9,), images=(1,)))
    positions = np.repeat(np.asarray(prompt.positions), 3, axis=2)
    slots = prompt.visual_slots[0]
    positions[0, slots, 0] = slots[0]
    positions[0, slots, 1], positions[0, slots, 2] = slots[0] + np.divmod(np.arange(25), 5)
    return model, dataclasses.replace(prompt, positions=positions)


@pytest.mark.parametrize("carve", CARVES)
def test_survivors_keep_their_rows_and_columns(rows_and_columns, carve):
    model, prompt = rows_and_columns
    out = model.prefill(prompt, carve=carve)
    segment = out.cache.segments[-1]
    cached = np.asarray(segment.positions[0])[np.asarray(segment.valid[0])]
    slots, left = prompt.visual_slots[0], np.asarray(out.cuts[0].indices[0])
    assert len(left) == 4
    at = np.setdiff1d(np.arange(prompt.lengths[0]), np.delete(slots, left))
    if "median" not in carve:
        np.testing.assert_array_equal(cached, prompt.positions[0, at])
    else:  # each axis by itself, of those that merged
        own = prompt.positions[0, slots] - slots[0]
        for row, position in enumerate(cached[np.isin(at, slots)] - slots[0]):
            group = np.sort(own[np.asarray(out.cuts[0].assignment[0]) == row], axis=0)
            np.testing.assert_array_equal(position, group[(len(group) - 1) // 2])
    assert segment.next_position[0] == prompt.next_position[0]


def test_rows_and_columns_are_not_renumbered(rows_and_columns):
    model, prompt = rows_and_columns
    with pytest.raises(ValueError, match="have 3 axes and cannot be renumbered"):
        model.prefill(prompt, carve="fastv@1=4,renumbered")
    past = resolve(parse("uniform@input=4", num_layers=2), 25)  # one that no family has looked at
    with pytest.raises(ValueError, match="several axes cannot be renumbered"):
        jax.eval_shape(
            lambda: prefill.prefill(model, prompt, np.uint32(0), plan=past, decode_capacity=0, target=CPU),
        )


def test_methods_whose_evidence_a_family_lacks_are_refused():
    cuts = parse("fastervlm@input=4", num_layers=2)
    assert for_family(cuts, "llava", evidence=EVIDENCE, axes=1) == cuts
    with pytest.raises(ValueError, match="fastervlm needs class_attention, which other models do not have"):
        for_family(cuts, "other", evidence=set(EVIDENCE) - {"class_attention"}, axes=1)
