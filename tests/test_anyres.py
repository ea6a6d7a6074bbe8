"""Which features an image of any size brings, and in which order: transformers' own functions say."""

import itertools

import numpy as np
import pytest
import torch
import transformers
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

from models.families import anyres

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # of every published checkpoint
LENGTHS = (1, 2, 13, 335, 336, 337, 427, 480, 671, 672, 1008, 1009, 2999)
SIZES = list(itertools.product(LENGTHS, LENGTHS))
TILE, PATCH = 336, 14
SIDE = TILE // PATCH


def test_sizes_are_chosen_alike():
    rng = np.random.default_rng(0)
    sizes = [*SIZES, *map(tuple, rng.integers(1, 3000, (2000, 2)).tolist())]
    pinpoints = [tuple(pair) for pair in PINPOINTS]
    chosen = set()
    for size in sizes:
        best = anyres.best_resolution(size, pinpoints)
        assert best == tuple(select_best_resolution(size, PINPOINTS)), size
        assert anyres.num_tiles(size, pinpoints, TILE) == image_size_to_num_patches(list(size), PINPOINTS, TILE)
        chosen.add(best)
    assert chosen == set(pinpoints)
    assert anyres.most_tiles(pinpoints, TILE) == 5


def packed_by_transformers(size, pinpoints, tile, patch, tiles):
    """What transformers makes of features that are their own numbers; the newline is -1."""
    vision = transformers.CLIPVisionConfig(image_size=tile, patch_size=patch)
    model = LlavaNextModel.__new__(LlavaNextModel)
    torch.nn.Module.__init__(model)
    model.config = transformers.LlavaNextConfig(vision_config=vision, image_grid_pinpoints=pinpoints)
    features = torch.arange(tiles * (tile // patch) ** 2).reshape(tiles, -1, 1)
    (packed,), _ = model.pack_image_features([features], [list(size)], "default", torch.tensor([-1]))
    return packed[:, 0].numpy()


@pytest.mark.parametrize(
    ("pinpoints", "tile", "patch"),
    [(PINPOINTS, TILE, PATCH), ([[30, 60], [90, 60], [30, 30]], 30, 6), ([[50, 25], [25, 75]], 25, 5)],
    ids=["published", "even", "odd"],
)
def test_features_are_packed_alike(pinpoints, tile, patch):
    rng = np.random.default_rng(1)
    sizes = [*SIZES[:: 1 if tile != TILE else 5], *map(tuple, rng.integers(1, 1500, (40, 2)).tolist())]
    pairs = [tuple(pair) for pair in pinpoints]
    for size in sizes:
        tiles = anyres.num_tiles(size, pairs, tile)
        got = anyres.features_of_image(size, pairs, tile=tile, patches=tile // patch, first=0, newline=-1)
        np.testing.assert_array_equal(got, packed_by_transformers(size, pinpoints, tile, patch, tiles), str(size))


def test_published_numbers():
    """2,880 patches at most, and a newline per row of the grid."""
    pairs = [tuple(pair) for pair in PINPOINTS]
    rows = anyres.features_of_image((672, 672), pairs, tile=TILE, patches=SIDE, first=0, newline=-1)
    assert len(rows) == 2880 + 2 * SIDE
    assert sorted(rows) == [*[-1] * 48, *range(2880)]


NEXT = {"pinpoints": ((30, 60), (60, 60)), "tile": 30, "patch_size": 6}


def test_tiles_are_joined_without_padding():
    pixels = np.arange(2 * 5 * 3 * 30 * 30, dtype=np.float32).reshape(2, 5, 3, 30, 30)
    stack, rows = anyres.lay_out(pixels, [(10, 20), (50, 50)], **NEXT)
    assert stack.shape == (10, 3, 30, 30)  # whatever the sizes
    np.testing.assert_array_equal(stack[:3], pixels[0, :3])
    np.testing.assert_array_equal(stack[3:8], pixels[1])
    assert not stack[8:].any()
    first, second = rows
    assert (first == 250).sum() == 5
    assert (second == 250).sum() == 10
    assert set(first) - {250} == set(range(75))
    assert set(second) - {250} == set(range(75, 200))


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((2, 3, 30, 30), [(10, 20)] * 2),
        ((2, 5, 3, 30, 30), None),
        ((2, 5, 3, 30, 30), [(10, 20)]),
        ((2, 5, 3, 30, 30), [(10, 20), (0, 20)]),
        ((2, 3, 3, 30, 30), [(10, 20), (50, 50)]),
    ],
)
def test_inputs_that_do_not_belong_together(shape, sizes):
    with pytest.raises(ValueError, match=r"image_sizes|pixel_values"):
        anyres.lay_out(np.zeros(shape), sizes, **NEXT)
