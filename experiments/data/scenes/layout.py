"""Which objects a scene holds, and where they stand on the grid of patches."""

from dataclasses import dataclass

import numpy as np

from experiments.data.scenes.vocabulary import COLOURS, DIGITS, GRID, SHAPES, WORDS


@dataclass(frozen=True)
class SceneConfig:
    """How full and how varied a scene is."""

    signs: int = 2  # with a word, each of another colour; at most 6
    cards: int = 2  # with a number, each of another colour; at most 6
    shapes: tuple[int, int] = (4, 6)  # the least and the greatest number
    digits: int = 3  # on a card
    gap: int = 1  # free patches between any two objects
    border: int = 1  # free patches along the edges of the image
    jitter: int = 14  # how far a colour strays from its centre, of 255, per channel
    zoom: float = 0.7  # the least side of the photo crop, as a share of the greatest side that fits
    brightness: tuple[float, float] = (0.7, 1.1)  # the least and the greatest factor on the photograph
    where_margin: float = 1.5  # patches from a shape's centre to the centre line, when its place is asked for
    relation_margin: float = 6.0  # patches between two shapes along the axis on which they are compared
    adversarial: float = 0.5  # share of "no" answers whose colour and shape both occur, on different shapes

    def __post_init__(self) -> None:
        """Refuse what no scene can show."""
        if not (0 <= self.signs <= len(COLOURS) and 0 <= self.cards <= len(COLOURS)):
            raise ValueError(
                f"signs and cards are 0 to {len(COLOURS)}, one for each colour, not {self.signs}, {self.cards}"
            )
        if self.signs + self.cards == 0:
            raise ValueError("a scene needs a sign or a card, or there is nothing to read")
        if not 1 <= self.digits <= 4:
            raise ValueError(f"a card holds 1 to 4 digits, not {self.digits}")
        if not 2 <= self.shapes[0] <= self.shapes[1] < len(COLOURS) * len(SHAPES):
            raise ValueError(f"shapes is (least, greatest) with 2 <= least <= greatest < 36, not {self.shapes}")


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene, and the rectangle of patches that it covers."""

    kind: str  # "sign", "card" or "shape"
    colour: str  # one of `COLOURS`
    name: str  # what questions call it: "sign", "card", or the shape ("circle", ...)
    text: str  # what is written on it; empty for shapes
    row: int
    column: int
    height: int
    width: int

    @property
    def centre(self) -> tuple[float, float]:
        """The middle (x, y), in patches from the top left corner of the image."""
        return self.column + self.width / 2, self.row + self.height / 2

    @property
    def phrase(self) -> str:
        """The object as questions name it: "red circle"."""
        return f"{self.colour} {self.name}"


def place_objects(config: SceneConfig, rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """Draw signs, then cards, then shapes, and put each on free patches, with a gap around it.

    Raises:
        ValueError: The objects don't fit on the grid.
    """
    cast: list[tuple[str, str, str, str, int, int]] = []
    words = rng.choice(len(WORDS), config.signs, replace=False)
    for colour, word in zip(rng.permutation(len(COLOURS)), words, strict=False):
        cast.append(("sign", COLOURS[colour], "sign", WORDS[word], 1, len(WORDS[word])))
    for colour in rng.permutation(len(COLOURS))[: config.cards]:
        number = "".join(DIGITS[d] for d in rng.integers(0, len(DIGITS), config.digits))
        cast.append(("card", COLOURS[colour], "card", number, 1, config.digits))
    count = int(rng.integers(config.shapes[0], config.shapes[1] + 1))
    for pair in rng.choice(len(COLOURS) * len(SHAPES), count, replace=False):
        cast.append(("shape", COLOURS[pair // len(SHAPES)], SHAPES[pair % len(SHAPES)], "", 2, 2))

    placed: list[SceneObject] = []
    for kind, colour, name, text, height, width in cast:
        row, column = _free_corner(placed, height, width, config, rng)
        placed.append(SceneObject(kind, colour, name, text, row, column, height, width))
    return tuple(placed)


def _free_corner(
    placed: list[SceneObject], height: int, width: int, config: SceneConfig, rng: np.random.Generator
) -> tuple[int, int]:
    """Choose evenly among all top left corners where `height` x `width` patches are free, gap included."""
    free = np.zeros((GRID, GRID), bool)
    free[config.border : GRID - config.border - height + 1, config.border : GRID - config.border - width + 1] = True
    for other in placed:
        top, left = max(0, other.row - config.gap - height + 1), max(0, other.column - config.gap - width + 1)
        free[top : other.row + other.height + config.gap, left : other.column + other.width + config.gap] = False
    corners = np.flatnonzero(free)
    if not len(corners):
        raise ValueError(f"the scene is too full: no room for {height} x {width} patches after {len(placed)} objects")
    row, column = divmod(int(corners[rng.integers(len(corners))]), GRID)
    return row, column
