"""The scenes: repeatable, split cleanly, and with answers that another way of looking confirms."""

import hashlib
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from experiments.data.scenes import (
    COLOURS,
    FAMILIES,
    GRID,
    KINDS,
    LABEL_CLASSES,
    PATCH,
    SHAPES,
    SIZE,
    WORDS,
    Scene,
    SceneConfig,
    assets,
    make_scene,
)
from experiments.data.scenes.scene import _paste
from experiments.data.scenes.vocabulary import DIGITS, LETTERS, RGB

CROWDED = SceneConfig(signs=4, cards=4, shapes=(8, 10))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(split, i, seed=7, questions=24) for split in ("train", "test") for i in range(100)]


def digest(scene: Scene) -> str:
    state = hashlib.sha256(scene.image.tobytes())
    for part in (*scene.labels, scene.objects, scene.questions):
        state.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return state.hexdigest()


def test_photographs_and_digits_are_those_of_scikit_learn() -> None:
    """They are read without it, which takes a second to import."""
    for split in ("train", "test"):
        for ours, whole in zip(assets.photos(split), load_sample_images().images, strict=True):
            np.testing.assert_array_equal(np.asarray(ours), whole[:, assets.photo_columns(whole.shape[1], split)])
    images, values = assets.handwritten()
    np.testing.assert_array_equal(images, load_digits().images)
    np.testing.assert_array_equal(values, load_digits().target)


def test_a_scene_is_what_its_docstring_says(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (SIZE, SIZE, 3)
        assert scene.image.dtype == np.uint8
        assert len(scene.questions) == 24
        for name, count in LABEL_CLASSES.items():
            field = getattr(scene.labels, name)
            assert field.shape == (GRID, GRID)
            assert field.dtype == np.int32
            assert 0 <= field.min() <= field.max() < count
        kinds = Counter(item.kind for item in scene.objects)
        assert kinds["sign"] == kinds["card"] == 2
        assert 4 <= kinds["shape"] <= 6
    assert LABEL_CLASSES.keys() == set(scenes[0].labels._fields)


def test_the_same_arguments_give_the_same_scene_in_any_process() -> None:
    here = digest(make_scene("test", 3, seed=5, config=CROWDED, questions=9))
    program = (
        "from tests.test_scenes import CROWDED, digest, make_scene;"
        "make_scene('train', 1);"
        "print(digest(make_scene('test', 3, seed=5, config=CROWDED, questions=9)))"
    )
    root = Path(__file__).parents[1]
    argv = [sys.executable, "-c", program]
    there = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True, timeout=600)
    assert there.stdout.strip() == here


def test_split_seed_and_index_each_give_another_scene() -> None:
    makers = [("train", 0, 0), ("test", 0, 0), ("train", 1, 0), ("train", 0, 1), ("test", 1, 0), ("test", 0, 1)]
    assert len({make_scene(*maker).objects for maker in makers}) == len(makers)


def test_more_questions_change_neither_the_image_nor_the_first_ones() -> None:
    few, many = make_scene("train", 4, questions=3), make_scene("train", 4, questions=30)
    np.testing.assert_array_equal(few.image, many.image)
    assert many.questions[:3] == few.questions


def test_train_and_test_share_no_digit_sample() -> None:
    train, test = assets.digit_indices("train"), assets.digit_indices("test")
    assert not set(train) & set(test)
    assert len(train) + len(test) == len(load_digits().target)
    assert 0.18 < len(test) / len(load_digits().target) < 0.22
    raw = load_digits().images.astype(np.uint8)
    assert not {raw[i].tobytes() for i in train} & {raw[i].tobytes() for i in test}
    for split, indices in (("train", train), ("test", test)):
        assert sum(len(masks) for masks in assets.digits(split)) == len(indices)
        assert all(len(masks) >= 20 for masks in assets.digits(split))


def test_train_and_test_share_no_pixel_of_a_photograph() -> None:
    for whole, left, right in zip(
        load_sample_images().images, assets.photos("train"), assets.photos("test"), strict=True
    ):
        assert left.width + right.width == whole.shape[1]
        np.testing.assert_array_equal(np.concatenate([np.asarray(left), np.asarray(right)], axis=1), whole)


def test_objects_keep_their_distance(scenes: list[Scene]) -> None:
    for scene in scenes + [make_scene("train", i, config=CROWDED) for i in range(20)]:
        for item in scene.objects:
            assert item.row >= 1
            assert item.row + item.height <= GRID - 1
            assert item.column >= 1
            assert item.column + item.width <= GRID - 1
        for a, b in combinations(scene.objects, 2):
            apart_in_rows = max(a.row - b.row - b.height, b.row - a.row - a.height)
            apart_in_columns = max(a.column - b.column - b.width, b.column - a.column - a.width)
            assert max(apart_in_rows, apart_in_columns) >= 1


def test_names_are_unambiguous(scenes: list[Scene]) -> None:
    for scene in scenes + [make_scene("train", i, config=CROWDED) for i in range(20)]:
        phrases = [item.phrase for item in scene.objects]
        assert len(set(phrases)) == len(phrases)


def test_every_kind_of_thing_occurs(scenes: list[Scene]) -> None:
    assert {item.text for s in scenes for item in s.objects if item.kind == "sign"} == set(WORDS)
    assert {(item.colour, item.name) for s in scenes for item in s.objects if item.kind == "shape"} == {
        (colour, shape) for colour in COLOURS for shape in SHAPES
    }
    assert set().union(*WORDS) == set(LETTERS)
    assert all(len(word) == 4 for word in WORDS)


def answer_from_labels(scene: Scene, text: str) -> str:
    """Answer a question from the per-patch labels alone, as a reader of the picture would."""
    labels = scene.labels

    def patches(colour: str, kind: str, shape: str | None = None) -> np.ndarray:
        mask = (labels.kind == KINDS.index(kind)) & (labels.colour == 1 + COLOURS.index(colour))
        return mask & (labels.shape == 1 + SHAPES.index(shape)) if shape else mask

    def middle(colour: str, shape: str) -> np.ndarray:
        found = np.argwhere(patches(colour, "shape", shape))
        assert len(found) == 4
        return found.mean(0)

    if match := re.fullmatch(r"What (?:word|number) is on the (\w+) (sign|card)\?", text):
        mask = patches(*match.groups())
        spelled = sorted(zip(labels.place[mask].tolist(), labels.glyph[mask].tolist(), strict=True))
        return "".join((LETTERS + DIGITS)[glyph - 1] for _, glyph in spelled)
    if match := re.fullmatch(r"Where is the (\w+) (\w+)\?", text):
        row, column = middle(*match.groups())
        assert min(abs(row - 11.5), abs(column - 11.5)) >= 1.5
        return ("top " if row < 11.5 else "bottom ") + ("left" if column < 11.5 else "right")
    if match := re.fullmatch(r"Is the (\w+) (\w+) (left or right of|above or below) the (\w+) (\w+)\?", text):
        colour, shape, relation, other_colour, other_shape = match.groups()
        down, across = middle(colour, shape) - middle(other_colour, other_shape)
        assert abs(across if "left" in relation else down) >= 3
        return ("left" if across < 0 else "right") if "left" in relation else ("above" if down < 0 else "below")
    match = re.fullmatch(r"Is there (an?) (\w+) (\w+) in the image\?", text)
    assert match, text
    assert (match[1] == "an") == (match[2] == "orange")
    return "yes" if patches(match[2], "shape", match[3]).any() else "no"


def test_answers_are_what_the_patches_show(scenes: list[Scene]) -> None:
    for scene in scenes:
        for question in scene.questions:
            assert question.answer == answer_from_labels(scene, question.text)


def test_the_short_form_says_the_same_and_ends_with_the_object(scenes: list[Scene]) -> None:
    for scene in scenes:
        for question in scene.questions:
            long = re.findall(r"[a-z]+", question.text.lower())
            assert set(question.short.split()) <= set(long)
            named = [(c, n) for c, n in pairwise(long) if c in COLOURS]
            colour, noun = named[0]
            assert question.short.endswith(f"{noun} {colour}")
            assert all(f"{n} {c}" in question.short for c, n in named)


def test_questions_name_the_objects_that_they_are_about(scenes: list[Scene]) -> None:
    for scene in scenes:
        for question in scene.questions:
            assert all(scene.objects[i].phrase in question.text for i in question.about)
            expected = 0 if question.answer == "no" else 2 if " or " in question.text else 1
            assert len(question.about) == expected


def test_families_take_turns(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert Counter(q.family for q in scene.questions) == dict.fromkeys(FAMILIES, 8)
    firsts = Counter(make_scene("test", i, questions=1).questions[0].family for i in range(30))
    assert firsts == dict.fromkeys(FAMILIES, 10)
    assert {q.family for q in make_scene("test", 2, questions=3).questions} == set(FAMILIES)


def test_answers_are_balanced(scenes: list[Scene]) -> None:
    def answers(kind: str) -> Counter[str]:
        return Counter(q.answer for s in scenes for q in s.questions if q.kind == kind)

    for kind, options in (
        ("exists", ("yes", "no")),
        ("left or right", ("left", "right")),
        ("above or below", ("above", "below")),
        ("where", ("top left", "top right", "bottom left", "bottom right")),
    ):
        counts = answers(kind)
        total, share = counts.total(), 1 / len(options)
        assert counts.keys() == set(options)
        # Questions of one scene share its objects, hence 6 and not 3 standard deviations.
        assert all(abs(n - share * total) < 6 * np.sqrt(total * share * (1 - share)) for n in counts.values()), counts
    numbers = Counter("".join(answers("number").elements()))
    assert set(numbers) == set(DIGITS)
    assert max(numbers.values()) < 1.5 * min(numbers.values())


def test_half_of_the_absent_shapes_could_be_put_together_from_present_ones(scenes: list[Scene]) -> None:
    traps = []
    for scene in scenes:
        present = {(item.colour, item.name) for item in scene.objects if item.kind == "shape"}
        colours, names = {colour for colour, _ in present}, {name for _, name in present}
        for question in scene.questions:
            if question.answer == "no":
                match = re.search(r"an? (\w+) (\w+) in", question.text)
                assert match
                traps.append(match[1] in colours and match[2] in names)
    assert 0.5 < np.mean(traps) < 0.85


def test_labels_say_what_is_painted(scenes: list[Scene]) -> None:
    """The left edge of a plate's patch and the middle of a full shape have the colour that the labels say."""
    palette = np.array(RGB, float)
    for scene in scenes[::5]:
        for row, column in np.argwhere(scene.labels.kind > 0):
            if SHAPES[scene.labels.shape[row, column] - 1] in ("ring", "star", "triangle"):
                continue
            top, left = row * PATCH, column * PATCH
            quadrant = scene.labels.quadrant[row, column]
            x = 0 if quadrant == 0 else (11, 2)[(quadrant - 1) % 2]
            y = 7 if quadrant == 0 else (11, 2)[(quadrant - 1) // 2]
            distance = np.linalg.norm(palette - scene.image[top + y, left + x], axis=1)
            assert 1 + distance.argmin() == scene.labels.colour[row, column]


def test_nothing_is_painted_outside_the_labelled_patches() -> None:
    """Objects stay inside their patches, and leave something on each of them."""
    plain = replace(SceneConfig(), jitter=0)
    scene = make_scene("train", 11, config=plain)
    background = np.kron(scene.labels.kind == 0, np.ones((PATCH, PATCH), bool))
    canvas = np.zeros((SIZE, SIZE, 3), np.float32)
    for item in scene.objects:
        _paste(canvas, item, "train", plain, np.random.default_rng(0))
    assert not canvas[background].any()
    assert all(
        canvas[r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].any()
        for r, c in np.argwhere(scene.labels.kind)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signs": 7}, "one for each colour"),
        ({"signs": 0, "cards": 0}, "nothing to read"),
        ({"shapes": (5, 4)}, "least <= greatest"),
        ({"shapes": (1, 4)}, "2 <= least"),
        ({"digits": 5}, "1 to 4 digits"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneConfig(**settings)


def test_a_scene_that_is_too_full_says_so() -> None:
    with pytest.raises(ValueError, match="too full"):
        make_scene("train", 0, config=SceneConfig(shapes=(30, 30), gap=4))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="validation"):
        make_scene("validation", 0)  # type: ignore[arg-type]
