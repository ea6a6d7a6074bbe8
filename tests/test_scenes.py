"""The scenes: the ones that the shipped model was trained on, with answers that another way of looking confirms."""

import hashlib
import re
from collections import Counter
from dataclasses import astuple
from itertools import combinations, pairwise

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
from experiments.data.scenes.vocabulary import DIGITS, LETTERS, RGB

CROWDED = SceneConfig(signs=4, cards=4, shapes=(8, 10))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(split, i, seed=7, questions=24) for split in ("train", "test") for i in range(100)]


@pytest.fixture(scope="module")
def crowded() -> list[Scene]:
    return [make_scene("train", i, config=CROWDED) for i in range(20)]


@pytest.mark.parametrize(
    ("split", "count", "pixels", "texts"),
    [
        (
            "train",
            100,
            "929cae0708dad7f23c49980048a2f8851803ef267b460058203980cdd2566e26",
            "4a8c1176c63b3e8e298bc9cf9c241d100acd6ea09e087b71d04074c5b2d97369",
        ),
        (
            "test",
            300,
            "e7242071ccbcc210f2a2b64f2229f365bdd6c65399de804f4a41780e3ac1045a",
            "82310020762f8625f3d54dc19b9c4fa0e94a62159d8c247f3018d056a28bc166",
        ),  # the 900 questions of `experiments.eval`
    ],
    ids=("train", "test"),
)
def test_not_a_pixel_and_not_a_word_has_changed(split, count, pixels, texts):
    """The shipped model was trained on such scenes, and all published numbers are of these."""
    images, words = hashlib.sha256(), hashlib.sha256()
    for index in range(count):
        scene = make_scene(split, index)
        images.update(scene.image.tobytes())
        words.update(b"".join(field.tobytes() for field in scene.labels))
        words.update(repr([astuple(one) for one in (*scene.objects, *scene.questions)]).encode())
    assert words.hexdigest() == texts
    assert images.hexdigest() == pixels


def test_photographs_and_digits_are_those_of_scikit_learn() -> None:
    """They are read without it, which takes a second to import; and the splits share no pixel and no sample."""
    for whole, left, right in zip(
        load_sample_images().images, assets.photos("train"), assets.photos("test"), strict=True
    ):
        np.testing.assert_array_equal(np.concatenate([np.asarray(left), np.asarray(right)], axis=1), whole)
        assert left.width / whole.shape[1] == pytest.approx(assets.TRAIN_COLUMNS, abs=0.01)
    (images, values), real = assets.handwritten(), load_digits()
    np.testing.assert_array_equal(images, real.images)
    np.testing.assert_array_equal(values, real.target)
    train, test = (assets.digit_indices(split) for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(len(values)))
    assert 0.18 < len(test) / len(values) < 0.22
    assert not {images[i].tobytes() for i in train} & {images[i].tobytes() for i in test}
    for split, indices in (("train", train), ("test", test)):
        counts = [len(masks) for masks in assets.digits(split)]
        assert sum(counts) == len(indices)
        assert min(counts) >= 20


def test_a_scene_is_what_its_docstring_says(scenes: list[Scene]) -> None:
    assert LABEL_CLASSES.keys() == set(scenes[0].labels._fields)
    for scene in scenes:
        assert (scene.image.shape, scene.image.dtype) == ((SIZE, SIZE, 3), np.uint8)
        for name, count in LABEL_CLASSES.items():
            field = getattr(scene.labels, name)
            assert (field.shape, field.dtype) == ((GRID, GRID), np.int32)
            assert 0 <= field.min() <= field.max() < count
        kinds = Counter(item.kind for item in scene.objects)
        assert kinds["sign"] == kinds["card"] == 2
        assert 4 <= kinds["shape"] <= 6
        assert Counter(question.family for question in scene.questions) == dict.fromkeys(FAMILIES, 8)


def test_split_seed_and_index_give_another_scene_and_more_questions_do_not() -> None:
    makers = [("train", 0, 0), ("test", 0, 0), ("train", 1, 0), ("train", 0, 1), ("test", 1, 0), ("test", 0, 1)]
    assert len({make_scene(*maker).objects for maker in makers}) == len(makers)
    few, many = make_scene("train", 4, questions=3), make_scene("train", 4, questions=30)
    np.testing.assert_array_equal(few.image, many.image)
    assert many.questions[:3] == few.questions
    firsts = Counter(make_scene("test", i, questions=1).questions[0].family for i in range(9))
    assert firsts == dict.fromkeys(FAMILIES, 3)


def test_objects_keep_their_distance_and_have_one_name_each(scenes, crowded) -> None:
    for scene in scenes + crowded:
        assert len({item.phrase for item in scene.objects}) == len(scene.objects)
        for item in scene.objects:
            assert 1 <= item.row <= GRID - 1 - item.height
            assert 1 <= item.column <= GRID - 1 - item.width
        for a, b in combinations(scene.objects, 2):
            apart_in_rows = max(a.row - b.row - b.height, b.row - a.row - a.height)
            apart_in_columns = max(a.column - b.column - b.width, b.column - a.column - a.width)
            assert max(apart_in_rows, apart_in_columns) >= 1


def test_every_kind_of_thing_occurs(scenes: list[Scene]) -> None:
    objects = [item for scene in scenes for item in scene.objects]
    assert {item.text for item in objects if item.kind == "sign"} == set(WORDS)
    shapes = {(item.colour, item.name) for item in objects if item.kind == "shape"}
    assert shapes == {(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert set("".join(WORDS)) == set(LETTERS)
    assert {len(word) for word in WORDS} == {4}


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


def test_questions_are_about_what_the_patches_show(scenes: list[Scene]) -> None:
    for scene in scenes:
        for question in scene.questions:
            assert question.answer == answer_from_labels(scene, question.text)
            assert all(scene.objects[i].phrase in question.text for i in question.about)
            assert len(question.about) == (0 if question.answer == "no" else 2 if " or " in question.text else 1)
            # The short form says the same, and ends with the object.
            long = re.findall(r"[a-z]+", question.text.lower())
            assert set(question.short.split()) <= set(long)
            named = [f"{noun} {colour}" for colour, noun in pairwise(long) if colour in COLOURS]
            assert question.short.endswith(named[0])
            assert all(one in question.short for one in named)


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
        colours, names = ({pair[i] for pair in present} for i in (0, 1))
        absent = [re.search(r"an? (\w+) (\w+) in", q.text).groups() for q in scene.questions if q.answer == "no"]
        traps += [colour in colours and name in names for colour, name in absent]
    assert 0.5 < np.mean(traps) < 0.85


def test_labels_say_what_is_painted(scenes: list[Scene]) -> None:
    """The left edge of a plate's patch and the middle of a full shape have the colour that the labels say."""
    palette = np.array(RGB, float)
    for scene in scenes[::5]:
        for row, column in np.argwhere(scene.labels.kind > 0):
            if SHAPES[scene.labels.shape[row, column] - 1] in ("ring", "star", "triangle"):
                continue
            quadrant = scene.labels.quadrant[row, column]
            x = 0 if quadrant == 0 else (11, 2)[(quadrant - 1) % 2]
            y = 7 if quadrant == 0 else (11, 2)[(quadrant - 1) // 2]
            distance = np.linalg.norm(palette - scene.image[row * PATCH + y, column * PATCH + x], axis=1)
            assert 1 + distance.argmin() == scene.labels.colour[row, column]


def test_objects_are_painted_on_their_own_patches_alone(monkeypatch) -> None:
    from experiments.data.scenes import scene as painting

    black = np.zeros((SIZE, SIZE, 3), np.float32)
    monkeypatch.setattr(painting, "_background", lambda *_: black.copy())
    scene = make_scene("train", 11)
    painted = scene.image.reshape(GRID, PATCH, GRID, PATCH, 3).any((1, 3, 4))
    np.testing.assert_array_equal(painted, scene.labels.kind > 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signs": 7}, "one for each colour"),
        ({"signs": 0, "cards": 0}, "nothing to read"),
        ({"shapes": (5, 4)}, "least <= greatest"),
        ({"shapes": (1, 4)}, "2 <= least"),
        ({"digits": 5}, "1 to 4 digits"),
        ({"shapes": (30, 30), "gap": 4}, "too full"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scene("train", 0, config=SceneConfig(**settings))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="validation"):
        make_scene("validation", 0)  # type: ignore[arg-type]
