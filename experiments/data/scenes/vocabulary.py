"""The words of the little world: its colours, shapes and nouns, and the size of its grid."""

GRID = 24
"""Patches along each side of an image, as in LLaVA-1.5."""
PATCH = 14
"""Pixels along each side of a patch."""
SIZE = GRID * PATCH
"""Pixels along each side of an image: 336."""

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
"""The colours that a sign, a card or a shape can have."""
RGB = ((214, 40, 40), (40, 150, 70), (35, 95, 225), (250, 208, 44), (140, 60, 190), (244, 126, 28))
"""The centre of each colour; every object strays a little from it."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
"""The shapes, each drawn on 2 x 2 patches."""

KINDS = ("background", "sign", "card", "shape")
"""What a patch can show."""

FAMILIES = ("reading", "spatial", "hallucination")
"""The three families of questions, as in figure 3 of the paper."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What is written on signs."""
DIGITS = "0123456789"
"""What is written on cards."""

WORDS = (
    *("BALL", "BANK", "BARN", "BEAR", "BELL", "BIRD", "BOAT", "BOOK"),
    *("CAKE", "CITY", "COAT", "COIN", "CORN", "CRAB", "DEER", "DESK"),
    *("DOOR", "DRUM", "DUCK", "EXIT", "FARM", "FIRE", "FISH", "FROG"),
    *("GATE", "GOAT", "HARP", "HILL", "HOME", "JAZZ", "JEEP", "KING"),
    *("KITE", "LAKE", "LAMP", "LEAF", "LION", "MILK", "MOON", "PARK"),
    *("PORT", "QUIZ", "RAIN", "RICE", "ROAD", "ROCK", "ROOF", "ROSE"),
    *("SALT", "SAND", "SEED", "SHIP", "SHOE", "SHOP", "SNOW", "SOAP"),
    *("SOUP", "TAXI", "TENT", "TREE", "VASE", "WALL", "WAVE", "WOLF"),
)
"""Four-letter nouns; training and held-out scenes share them, and every letter of the alphabet occurs."""
