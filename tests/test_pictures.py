"""Pictures of a carve, pixel by pixel."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments.reports import pictures
from experiments.reports.pictures import FOG, GAP, View, carved_panel, enlarge, group_colours
from models.engine.sequence import CutRecord
from tests.tiny import CONFIG

SIDE, GRID = 56, 4
PATCH = 12 * SIDE // GRID  # as shown, enlarged 12 times


@pytest.fixture
def view():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    #            kept 0; merged 1 with 5 and 15, 3 with 4; the rest dropped
    assignment = np.array([0, 1, -1, 3, 3, 1, 2, -1, -1, -1, -1, -1, 4, -1, -1, 1])
    return View(image, assignment, survivors=np.array([0, 1, 6, 4, 12]))


def patch_of(panel, index):
    y, x = (PATCH * part for part in divmod(index, GRID))
    return panel[y : y + PATCH, x : x + PATCH].astype(float)


def test_kept_patches_are_untouched(view):
    panel, original = carved_panel(view, group_colours(view.assignment)), enlarge(view.image)
    assert panel.shape == original.shape == (672, 672, 3)
    for index in (0, 6, 12):
        np.testing.assert_array_equal(patch_of(panel, index), patch_of(original, index))


def test_dropped_patches_are_grey(view):
    panel = carved_panel(view, group_colours(view.assignment))
    for index in np.flatnonzero(view.assignment < 0):
        patch = patch_of(panel, index)
        assert np.ptp(patch, axis=-1).max() <= np.ptp(FOG) + 1  # no colour is left
        assert np.abs(patch - FOG).max() < 50


def test_merged_patches_share_a_tint_and_the_anchor_is_framed(view):
    colours = group_colours(view.assignment)
    assert set(colours) == {1, 3}
    panel, original = carved_panel(view, colours), enlarge(view.image)
    for row, members, anchor in ((1, (1, 5, 15), 1), (3, (3, 4), 4)):
        for index in members:
            tint = 2 * patch_of(panel, index) - patch_of(original, index)  # undo the mixing
            inside = tint[20:-20, 20:-20]
            assert np.abs(inside - colours[row]).max() <= 1
            framed = bool((patch_of(panel, index)[0] == colours[row]).all())
            assert framed == (index == anchor)


def test_colours_of_groups_are_told_apart():
    colours = list(group_colours(np.repeat(np.arange(12), 2)).values())
    distance = [np.linalg.norm(np.subtract(a, b)) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distance) > 30
    assert group_colours(np.array([0, 1, 2, -1, -1])) == {}


def test_each_image_stands_beside_its_stages(view):
    page = pictures.draw([view, view])
    assert page.tobytes() == pictures.draw([view, view]).tobytes()
    pixels = np.asarray(page)
    assert pixels.shape == (2 * 672 + GAP, 3 * 672 + 2 * GAP, 3)
    original, panel = enlarge(view.image), carved_panel(view, group_colours(np.tile(view.assignment, 2)))
    for y in (0, 672 + GAP):
        np.testing.assert_array_equal(pixels[y : y + 672, :672], original)
        np.testing.assert_array_equal(pixels[y : y + 672, -672:], panel)
        first = pixels[y : y + 672, 672 + GAP : 2 * 672 + GAP]
        for index, row in enumerate(view.assignment):  # all that lives on in any form is clear in stage I
            assert (patch_of(first, index) == patch_of(original, index)).all() == (row >= 0)
    assert (pixels[672 : 672 + GAP] == 255).all()
    assert (pixels[:, 672 : 672 + GAP] == 255).all()


def test_one_panel_where_nothing_merges(view):
    alone = dataclasses.replace(view, assignment=np.where(np.arange(16) == 3, 0, -1), survivors=np.array([3]))
    assert pictures.draw([alone]).size == (2 * 672 + GAP, 672)


@pytest.mark.parametrize("class_token", [False, True])
def test_views_of_several_images(class_token):
    """Two cuts are joined, and each image has its own part."""
    config = dataclasses.replace(CONFIG, keep_class_token=class_token)
    size, images = config.tokens_per_image, [np.zeros((30, 30, 3), np.uint8)] * 2
    first = np.arange(0, 2 * size, 2), np.arange(2 * size) // 2
    second = np.array([1, 15]), np.where(np.arange(size) < 15, 0, 1)
    second[1][3] = -1
    cuts = [CutRecord(*(np.stack([0 * part, part]) for part in cut)) for cut in (first, second)]
    views = pictures.views_of(images, config, SimpleNamespace(cuts=cuts), row=1)
    want = np.where(np.arange(2 * size) < 30, 0, 1)
    want[6:8] = -1
    for i, view in enumerate(views):
        assert view.first == i * size + class_token
        np.testing.assert_array_equal(view.assignment, want[view.first : view.first + 25])
        np.testing.assert_array_equal(view.survivors, [2, 30])


def test_nothing_cut_shows_the_images_as_they_are():
    images = [np.random.default_rng(i).integers(0, 256, (30, 30, 3), dtype=np.uint8) for i in range(2)]
    for view in pictures.views_of(images, CONFIG, SimpleNamespace(cuts=())):
        np.testing.assert_array_equal(carved_panel(view, group_colours(view.assignment)), enlarge(view.image))


def test_patches_that_are_not_a_grid_are_refused(view):
    with pytest.raises(ValueError, match="15 patches are not a square grid"):
        carved_panel(dataclasses.replace(view, assignment=view.assignment[1:]), {})


def test_saved_whole_or_not_at_all(tmp_path):
    pictures.save(Image.new("RGB", (4, 4)), tmp_path / "new" / "page.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.png"]
    with pytest.raises(OSError, match="cannot write"):
        pictures.save(Image.new("CMYK", (4, 4)), tmp_path / "new" / "other.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.png"]
