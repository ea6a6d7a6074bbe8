"""Budgets per image, and numbers of visual tokens that vary: what is kept, of which image, in which shapes."""

import dataclasses

import numpy as np
import pytest

from models.engine import plan, prefill
from models.engine.plan import Cut
from models.engine.prompt import VISUAL_BUCKET
from models.families import anyres
from models.llava import LlavaNextConfig
from tests import tiny
from tests.tiny import CONFIG, IMAGE_TOKEN, PATCHES
from tokencarve_jax import COMPRESSORS

CARVE = COMPRESSORS["tokencarve"]
PINPOINTS = ((30, 60), (60, 60))
# Few layers: what varies here are shapes, and every shape is a program to compile.
FIELDS = vars(CONFIG) | {"text": dataclasses.replace(CONFIG.text, num_layers=3)}
NEXT = LlavaNextConfig(**FIELDS, image_grid_pinpoints=PINPOINTS)


@pytest.fixture(scope="module")
def llava():
    return tiny.make_llava(num_layers=4)


@pytest.fixture(scope="module")
def next_llava():
    return tiny.make_llava(config=NEXT)


def counts(prefilled, cut, per_image):
    """How many survivors each row has of each image."""
    return [np.bincount(np.asarray(row) // per_image).tolist() for row in prefilled.cuts[cut].indices]


def test_each_image_keeps_its_share(llava):
    ids, pixels, mask = tiny.make_inputs(texts=(9, 4), images=(2, 2))
    prompt = llava.prompt(ids, pixels, mask)
    assert prompt.images == 2
    out = llava.prefill(prompt, carve=(Cut(2, CARVE, 0.2, scope="image"),))
    assert counts(out, 0, PATCHES) == [[5, 5]] * 2
    for row in range(2):  # and what is cached stands where these images stand
        cached = np.asarray(out.cache.segments[0].positions[row, :, 0])[np.asarray(out.cache.segments[0].valid[row])]
        spans = prompt.visual_slots[row].reshape(2, PATCHES)
        assert [np.isin(cached, span).sum() for span in spans] == [5, 5]
    joint = counts(llava.prefill(prompt, carve=((2, "tokencarve", 0.2),)), 0, PATCHES)
    assert [sum(row) for row in joint] == [10, 10]


def test_one_image_is_carved_as_ever(llava):
    prompt = llava.prompt(*tiny.make_inputs())
    want, got = (llava.prefill(prompt, carve=carve) for carve in (7, (Cut(2, CARVE, 7, scope="image"),)))
    np.testing.assert_array_equal(got.cuts[0].indices, want.cuts[0].indices)
    np.testing.assert_array_equal(got.logits, want.logits)


def test_assignments_name_the_survivors(llava):
    """Each survivor lives on in its own row, and tokens live on in survivors of their own image."""
    ids, pixels, mask = tiny.make_inputs(images=(2, 2))
    out = llava.prefill(llava.prompt(ids, pixels, mask), carve=(Cut(2, CARVE, 6, scope="image"),))
    for survivors, assignment in zip(out.cuts[0].indices, out.cuts[0].assignment, strict=True):
        assert assignment[survivors].tolist() == list(range(12))
        assert {int(row) // 6 for row in assignment[:PATCHES] if row >= 0} == {0}
        assert {int(row) // 6 for row in assignment[PATCHES:] if row >= 0} == {1}


def test_rows_with_fewer_images(llava):
    """A row's tokens are the same whether a richer row stands beside it or not."""
    ids, pixels, mask = tiny.make_inputs(texts=(9, 9), images=(1, 2))
    options = {"max_new_tokens": 6, "carve": (Cut(2, CARVE, 0.2, scope="image"),)}
    both = llava.generate(ids, pixels, attention_mask=mask, **options)
    alone = llava.generate(ids[:1], pixels[:1], attention_mask=mask[:1], **options)
    np.testing.assert_array_equal(both[0], alone[0])


def test_a_joint_cut_mixes_the_images(llava):
    ids, pixels, mask = tiny.make_inputs(images=(2, 2))
    prompt = llava.prompt(ids, pixels, mask)
    with pytest.raises(ValueError, match="put no cut with a joint budget before this one"):
        llava.prefill(prompt, carve=((1, "tokencarve", 20), Cut(3, CARVE, 4, scope="image")))
    out = llava.prefill(prompt, carve=(Cut(1, CARVE, 9, scope="image"), (3, "tokencarve", 7)))
    assert counts(out, 0, PATCHES) == [[9, 9]] * 2
    assert out.cuts[1].indices.shape == (2, 7)


def test_counts_are_checked_over_all_images():
    cut = plan.parse((Cut(2, CARVE, 26, scope="image"),), num_layers=5)
    with pytest.raises(ValueError, match=r"must be in 1\.\.25"):
        plan.resolve(cut, 50, images=2)
    more = plan.parse((Cut(1, CARVE, 5, scope="image"), Cut(2, CARVE, 6, scope="image")), num_layers=5)
    with pytest.raises(ValueError, match="keeps 12 visual tokens, but only 10 are left"):
        plan.resolve(more, 50, images=2)


# LLaVA-NeXT: any number of visual tokens


def next_inputs(sizes_of_rows, seed=0):
    """Rows of images of these sizes, with a word before each and some after."""
    rng = np.random.default_rng(seed)
    sizes = [size for row in sizes_of_rows for size in row]
    pixels = rng.normal(size=(len(sizes), 5, 3, 30, 30)).astype(np.float32)
    brings = (
        [len(rows) for rows in anyres.lay_out(pixels, sizes, pinpoints=PINPOINTS, tile=30, patch_size=6)[1]]
        if sizes
        else []
    )
    rows, at = [], 0
    for row in sizes_of_rows:
        ids = []
        for number in brings[at : at + len(row)]:
            ids += [int(rng.integers(8, 101)), *[IMAGE_TOKEN] * number]
        at += len(row)
        rows.append([*ids, *rng.integers(8, 101, 4)])
    width = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), width), int)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask, "image_sizes": sizes}, brings


def test_images_of_different_size_share_or_have_budgets(next_llava):
    inputs, brings = next_inputs([[(10, 20), (50, 50)]])
    assert brings == [25 + 5 * 11, 25 + 10 * 11]
    joint, each = next_llava.prompt(**inputs), next_llava.prompt(**inputs, per_image=True)
    assert joint.images is None
    assert each.images == 2
    assert joint.visual_slots.shape == (1, 256)  # 215 in steps of 64
    assert each.visual_slots.shape == (1, 2 * 192)
    with pytest.raises(ValueError, match="pack the prompt with per_image=True"):
        next_llava.prefill(joint, carve=(Cut(2, CARVE, 0.1, scope="image"),))
    assert counts(next_llava.prefill(each, carve=(Cut(2, CARVE, 0.1, scope="image"),)), 0, 192) == [[19, 19]]


def test_padding_is_never_kept_while_real_tokens_last(next_llava):
    inputs, brings = next_inputs([[(10, 20)], [(50, 50)]])
    prompt = next_llava.prompt(**inputs)
    out = next_llava.prefill(prompt, carve=0.1)
    kept = round(0.1 * 192)
    assert out.cuts[0].indices.shape == (2, kept)
    for survivors, number in zip(out.cuts[0].indices, brings, strict=True):
        assert (np.asarray(survivors) < number).all()


def test_packing_per_image_changes_nothing_but_the_padding(next_llava):
    inputs, _ = next_inputs([[(10, 20), (50, 50)], [(60, 20)]])
    logits = [next_llava.prefill(next_llava.prompt(**inputs, per_image=flag)).logits for flag in (False, True)]
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-4)


def test_rows_generate_as_if_alone(next_llava):
    """With two grids, and with no image."""
    rows = [[(10, 20), (50, 50)], []]
    inputs, _ = next_inputs(rows)
    got = next_llava.generate(**inputs, max_new_tokens=6)
    first = 0
    for row, sizes in enumerate(rows):
        own = slice(first, first + len(sizes))
        first += len(sizes)
        alone = {name: inputs[name][row : row + 1] for name in ("input_ids", "attention_mask")}
        if sizes:
            alone |= {"pixel_values": inputs["pixel_values"][own], "image_sizes": sizes}
        np.testing.assert_array_equal(got[row], next_llava.generate(**alone, max_new_tokens=6)[0])


def test_images_of_many_sizes_share_compiled_programs(next_llava):
    """Every size that brings as many tokens, rounded up, runs the program of the first."""
    shapes, sizes = set(), [(30, 30), (20, 60), (60, 40), (60, 50), (60, 20), (60, 60)]
    before = prefill.prefill._cache_size()
    for size in sizes:
        prompt = next_llava.prompt(**next_inputs([[size]])[0])
        next_llava.prefill(prompt, carve=0.25)
        shapes.add((prompt.input_ids.shape, prompt.visual_slots.shape))
        assert prompt.visual_slots.shape[1] % VISUAL_BUCKET == 0
    assert len({int(n) for size in sizes for n in next_inputs([[size]])[1]}) > len(shapes)
    assert prefill.prefill._cache_size() - before == len(shapes) < len(sizes)


def test_placeholders_that_do_not_come_out_even(next_llava):
    inputs, _ = next_inputs([[(10, 20)], [(50, 50)]])
    inputs["image_sizes"] = inputs["image_sizes"][::-1]
    with pytest.raises(ValueError, match=r"holds \[80, 135\] image placeholders per row, but 2 images bring 80 or 135"):
        next_llava(**inputs)
