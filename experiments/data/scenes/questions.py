"""Questions about a scene, with the answers that follow from its objects.

Three families, as in figure 3 of the paper:

    reading        What word is on the red sign?                     BIRD
                   What number is on the blue card?                  407
    spatial        Where is the red circle?                          top left
                   Is the red circle left or right of the blue star? left
                   Is the red circle above or below the blue star?   below
    hallucination  Is there a red circle in the image?               yes, as often as no

Each has a short form too, which ends with the object's name ("where is circle red"): a decoder that learns from
scratch learns that form first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from experiments.data.scenes.layout import SceneConfig, SceneObject
from experiments.data.scenes.vocabulary import COLOURS, FAMILIES, GRID, SHAPES

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One question about one scene."""

    family: str  # one of `FAMILIES`
    kind: str  # within its family: "word", "number", "where", "left or right", "above or below", "exists"
    text: str  # as a person would ask it
    short: str  # the same with few words, ending with the object's name
    answer: str  # the one right one
    about: tuple[int, ...]  # which of the scene's objects must be seen to answer; empty where the answer is "no"


class _Deck(Generic[T]):
    """Draws without repetition until all are drawn, then shuffles again."""

    def __init__(self, items: Sequence[T], rng: np.random.Generator) -> None:
        self.items, self.rng, self.order = items, rng, list[int]()

    def draw(self) -> T:
        if not self.order:
            self.order = self.rng.permutation(len(self.items)).tolist()
        return self.items[self.order.pop()]


def ask(
    objects: Sequence[SceneObject], count: int, first: int, config: SceneConfig, rng: np.random.Generator
) -> tuple[Question, ...]:
    """Ask `count` questions, the families taking turns.

    Args:
        objects: The objects of the scene.
        count: How many questions.
        first: Which family begins, modulo 3, so that one question per scene still gives all families over many scenes.
        config: The margins that keep answers beyond doubt.
        rng: Where the choices come from.

    Returns:
        The questions; one repeats only when its scene has no further one of that sort.
    """
    ways = (_reading(objects, rng), _spatial(objects, config, rng), _hallucination(objects, config, rng))
    return tuple(ways[(first + turn) % len(FAMILIES)]() for turn in range(count))


def _reading(objects: Sequence[SceneObject], rng: np.random.Generator) -> Callable[[], Question]:
    """What is written on one of the signs or cards."""

    def question(index: int) -> Question:
        item = objects[index]
        noun = "word" if item.kind == "sign" else "number"
        text, short = f"What {noun} is on the {item.phrase}?", f"{noun} on {item.name} {item.colour}"
        return Question("reading", noun, text, short, item.text, (index,))

    return _Deck([question(i) for i, item in enumerate(objects) if item.kind != "shape"], rng).draw


def _spatial(objects: Sequence[SceneObject], config: SceneConfig, rng: np.random.Generator) -> Callable[[], Question]:
    """Where a shape is, in the image or as seen from another one."""
    shapes = [i for i, item in enumerate(objects) if item.kind == "shape"]
    where, beside, over = list[Question](), list[Question](), list[Question]()
    for i in shapes:
        item, (x, y) = objects[i], objects[i].centre
        if min(abs(x - GRID / 2), abs(y - GRID / 2)) >= config.where_margin:
            answer = f"{'top' if y < GRID / 2 else 'bottom'} {'left' if x < GRID / 2 else 'right'}"
            text, short = f"Where is the {item.phrase}?", f"where is {item.name} {item.colour}"
            where.append(Question("spatial", "where", text, short, answer, (i,)))
        for j in shapes:
            other, (u, v) = objects[j], objects[j].centre
            tail = f"{other.name} {other.colour} is {item.name} {item.colour}"
            if abs(x - u) >= config.relation_margin:
                text, short = f"Is the {item.phrase} left or right of the {other.phrase}?", f"left or right of {tail}"
                beside.append(Question("spatial", "left or right", text, short, "left" if x < u else "right", (i, j)))
            if abs(y - v) >= config.relation_margin:
                text, short = f"Is the {item.phrase} above or below the {other.phrase}?", f"above or below {tail}"
                over.append(Question("spatial", "above or below", text, short, "above" if y < v else "below", (i, j)))
    sorts = [_Deck(sort, rng) for sort in (where, beside, over) if sort]
    if where:
        sorts += [sorts[0]] * 3  # two thirds of the questions are about one shape, one third about two
    if not sorts:
        raise ValueError("no two shapes are far enough apart for a spatial question; lower the margins of the config")
    return lambda: sorts[rng.integers(len(sorts))].draw()


def _hallucination(
    objects: Sequence[SceneObject], config: SceneConfig, rng: np.random.Generator
) -> Callable[[], Question]:
    """Is there such a shape? A fair coin decides the answer, before anything is chosen."""
    there = {(item.colour, item.name): i for i, item in enumerate(objects) if item.kind == "shape"}
    colours, names = {colour for colour, _ in there}, {name for _, name in there}
    absent = [(colour, name) for colour in COLOURS for name in SHAPES if (colour, name) not in there]
    likely = [(colour, name) for colour, name in absent if colour in colours and name in names]
    yes, no, trap = _Deck(list(there), rng), _Deck(absent, rng), _Deck(likely or absent, rng)

    def question() -> Question:
        present = bool(rng.integers(2))
        colour, name = (yes if present else trap if rng.random() < config.adversarial else no).draw()
        article = "an" if colour[0] in "aeiou" else "a"
        text, short = f"Is there {article} {colour} {name} in the image?", f"is there {name} {colour}"
        about = (there[colour, name],) if present else ()
        return Question("hallucination", "exists", text, short, "yes" if present else "no", about)

    return question
