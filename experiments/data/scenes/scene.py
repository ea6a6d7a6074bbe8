"""One scene: an image put together from real pieces, with what there is to know about it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.data.scenes import assets
from experiments.data.scenes.assets import Split
from experiments.data.scenes.layout import SceneConfig, SceneObject, place_objects
from experiments.data.scenes.questions import Question, ask
from experiments.data.scenes.vocabulary import COLOURS, DIGITS, GRID, KINDS, LETTERS, PATCH, RGB, SHAPES, SIZE


class Labels(NamedTuple):
    """What each patch shows; every field is an int32 array [24, 24] in which 0 means "none"."""

    kind: np.ndarray  # 0 background, 1 sign, 2 card, 3 shape
    colour: np.ndarray  # 1 + index into `COLOURS`
    glyph: np.ndarray  # 1..26 for the letters A..Z, 27..36 for the digits 0..9
    place: np.ndarray  # 1 + place of the glyph in its word or number
    shape: np.ndarray  # 1 + index into `SHAPES`
    quadrant: np.ndarray  # 1 top left, 2 top right, 3 bottom left, 4 bottom right of a shape


LABEL_CLASSES = {"kind": 4, "colour": 7, "glyph": 37, "place": 5, "shape": 7, "quadrant": 5}
"""How many classes each field of `Labels` has."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Scene:
    """An image and all that is known about it."""

    image: np.ndarray  # uint8 [336, 336, 3]
    labels: Labels
    objects: tuple[SceneObject, ...]  # signs, then cards, then shapes
    questions: tuple[Question, ...]


def make_scene(
    split: Split, index: int, seed: int = 0, config: SceneConfig | None = None, *, questions: int = 3
) -> Scene:
    """Make the scene number `index` of a split, always the same for the same arguments.

    Args:
        split: "train" or "test". The two share no pixel of a photograph, no digit sample and no random number.
        index: Which scene, from 0.
        seed: Another seed gives another sequence of scenes.
        config: How full the scene is; the default configuration when None.
        questions: How many questions to ask. It changes neither the image nor the first questions.

    Returns:
        The scene.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split is "train" or "test", not {split!r}')
    config = config or SceneConfig()
    root = np.random.SeedSequence([seed, index, split == "test"])
    picture, text = (np.random.Generator(np.random.Philox(child)) for child in root.spawn(2))
    objects = place_objects(config, picture)
    image = _background(split, config, picture)
    for item in objects:
        _paste(image, item, split, config, picture)
    pixels = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return Scene(pixels, label_patches(objects), objects, ask(objects, questions, index, config, text))


def label_patches(objects: tuple[SceneObject, ...]) -> Labels:
    """Say for every patch what stands on it."""
    labels = Labels(*(np.zeros((GRID, GRID), np.int32) for _ in Labels._fields))
    glyphs = LETTERS + DIGITS
    for item in objects:
        area = slice(item.row, item.row + item.height), slice(item.column, item.column + item.width)
        labels.kind[area] = KINDS.index(item.kind)
        labels.colour[area] = 1 + COLOURS.index(item.colour)
        if item.kind == "shape":
            labels.shape[area] = 1 + SHAPES.index(item.name)
            labels.quadrant[area] = [[1, 2], [3, 4]]
        else:
            labels.glyph[area] = [1 + glyphs.index(character) for character in item.text]
            labels.place[area] = 1 + np.arange(len(item.text))
    return labels


def _background(split: Split, config: SceneConfig, rng: np.random.Generator) -> np.ndarray:
    """A crop of a photograph, float32 [336, 336, 3], at a random scale, place, brightness and maybe mirrored."""
    pool = assets.photos(split)
    photo = pool[rng.integers(len(pool))]
    side = min(photo.size) * rng.uniform(config.zoom, 1)
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, np.float32) * np.float32(rng.uniform(*config.brightness))
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.integers(2) else pixels


def _paste(image: np.ndarray, item: SceneObject, split: Split, config: SceneConfig, rng: np.random.Generator) -> None:
    """Draw one object into `image`, inside its own patches."""
    base = np.asarray(RGB[COLOURS.index(item.colour)])
    colour = np.clip(base + rng.integers(-config.jitter, config.jitter + 1, 3), 0, 255).astype(np.float32)
    area = image[
        item.row * PATCH : (item.row + item.height) * PATCH, item.column * PATCH : (item.column + item.width) * PATCH
    ]
    if item.kind == "shape":
        fill, rim, shadow = assets.shapes()[SHAPES.index(item.name)]
        _blend(area, 0.45 * shadow, 0.0)
        _blend(area, rim, 250.0)
        _blend(area, fill, colour)
        return
    _blend(area, assets.plate(item.width), colour)
    if item.kind == "sign":
        glyphs = [assets.letters()[LETTERS.index(letter)] for letter in item.text]
    else:
        samples = [assets.digits(split)[int(digit)] for digit in item.text]
        glyphs = [sample[rng.integers(len(sample))] for sample in samples]
    dark = colour @ _LUMA > 140
    _blend(area, np.concatenate(glyphs, 1), 20.0 if dark else 255.0)


def _blend(area: np.ndarray, mask: np.ndarray, colour: np.ndarray | float) -> None:
    """Lay `colour` over `area`, as opaque as `mask` says, in place."""
    area += mask[..., None] * (colour - area)
