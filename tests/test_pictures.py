"""Pictures of a carve, pixel by pixel."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments.reports import pictures
from experiments.reports.pictures import FOG, GAP, View, carved_panel, enlarge, group_colours
from models.engine.sequence import CutRecord
from models.llava import Llava
from tests.tiny import CONFIG

SIDE, GRID = 56, 4
PATCH = 12 * SIDE // GRID  # as shown, enlarged 12 times


@pytest.fixture
def view():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    #            kept 0; merged 1 with 5 and 15, 3 with 4; the rest dropped
    assignment = np.array([[0, 1, -1, 3], [3, 1, 2, -1], [-1, -1, -1, -1], [4, -1, -1, 1]])
    return View(image, assignment, stays=np.isin(np.arange(16), [0, 1, 6, 4, 12]).reshape(4, 4))


def views_of(pixels, config):
    return Llava.views(SimpleNamespace(config=config), None, pixels)


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
    for index in np.flatnonzero(view.assignment.reshape(-1) < 0):
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
        for index, row in enumerate(view.assignment.reshape(-1)):  # all that lives on in any form is clear in stage I
            assert (patch_of(first, index) == patch_of(original, index)).all() == (row >= 0)
    assert (pixels[672 : 672 + GAP] == 255).all()
    assert (pixels[:, 672 : 672 + GAP] == 255).all()


def test_one_panel_where_nothing_merges(view):
    stays = np.arange(16).reshape(4, 4) == 3
    alone = dataclasses.replace(view, assignment=np.where(stays, 0, -1), stays=stays)
    assert pictures.draw([alone]).size == (2 * 672 + GAP, 672)


def test_parts_of_any_shape(view):
    """Of an image of 60 x 40 pixels that 4 x 3 tokens divide, some are dropped; 50 images are smaller."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    stays = np.array([[True, False, True, True], [False, False, True, True], [True, True, False, True]])
    wide = View(image, np.where(stays, np.arange(12).reshape(3, 4), -1), stays)
    panel, original = carved_panel(wide, {}), enlarge(image)
    assert panel.shape == original.shape == (440, 660, 3)
    same = (panel == original).all(-1)
    for y, x in np.ndindex(3, 4):  # the second row of tokens begins at 146 and two thirds
        part = same[round(440 * y / 3) : round(440 * (y + 1) / 3), 165 * x : 165 * (x + 1)]
        assert part.mean() > 0.99 if stays[y, x] else part.mean() < 0.01
    # 12 rows of panels of 336 pixels at most, 5 times 3 beside each other.
    assert pictures.draw([wide] * 50).size == (15 * (360 + GAP) - GAP, 12 * (240 + GAP) - GAP)
    assert carved_panel(dataclasses.replace(wide, image=np.tile(image, (20, 20, 1))), {}).shape == (448, 672, 3)


@pytest.mark.parametrize("class_token", [False, True])
def test_views_of_several_images(class_token):
    """Two cuts are joined, and each image has its own part; slots of padding are nobody's."""
    config = dataclasses.replace(CONFIG, keep_class_token=class_token)
    size, seen = config.tokens_per_image, views_of(np.zeros((2, 3, 30, 30)), config)
    first = np.arange(0, 2 * size, 2), np.arange(2 * size) // 2
    second = np.array([1, 15]), np.where(np.arange(size) < 15, 0, 1)
    second[1][3] = -1
    cuts = [CutRecord(*(np.stack([0 * part, part]) for part in cut)) for cut in (first, second)]
    valid = np.stack([np.zeros(2 * size, bool), np.ones(2 * size, bool)])
    views = pictures.views_of(seen, [1, 2], SimpleNamespace(visual_valid=valid), SimpleNamespace(cuts=cuts), row=1)
    want = np.where(np.arange(2 * size) < 30, 0, 1)
    want[6:8] = -1
    for i, view in enumerate(views):
        first = i * size + class_token
        np.testing.assert_array_equal(view.assignment, want[first : first + 25].reshape(5, 5))
        np.testing.assert_array_equal(np.flatnonzero(view.stays) + first, [[2], [30]][i])
    moved = np.roll(np.pad(valid, ((0, 0), (0, 2))), 2, axis=1)
    cut = CutRecord(*(np.stack([part, part]) for part in (np.array([2, 3 + size]), np.arange(2 * size + 2))))
    prompt, prefilled = SimpleNamespace(visual_valid=moved), SimpleNamespace(cuts=[cut])
    views = pictures.views_of(seen, [1, 2], prompt, prefilled, row=1)
    np.testing.assert_array_equal(views[1].assignment.reshape(-1), 2 + size + class_token + np.arange(25))
    assert [np.flatnonzero(view.stays).tolist() for view in views] == ([[], [0]] if class_token else [[0], [1]])


def test_nothing_cut_shows_the_images_as_they_are():
    images = [np.random.default_rng(i).integers(0, 256, (30, 30, 3), dtype=np.uint8) for i in range(2)]
    prompt = SimpleNamespace(visual_valid=np.ones((1, 50), bool))
    for view in pictures.views_of(views_of(np.zeros((2, 3, 30, 30)), CONFIG), images, prompt, SimpleNamespace(cuts=())):
        np.testing.assert_array_equal(carved_panel(view, group_colours(view.assignment)), enlarge(view.image))


def test_saved_whole_or_not_at_all(tmp_path):
    pictures.save(Image.new("RGB", (4, 4)), tmp_path / "new" / "page.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.png"]
    with pytest.raises(OSError, match="cannot write"):
        pictures.save(Image.new("CMYK", (4, 4)), tmp_path / "new" / "other.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.png"]
