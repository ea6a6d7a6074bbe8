"""What is compared: budgets by method, on the engine's own states and on plain arrays."""

from pathlib import Path

FIXTURES = Path(__file__).with_name("fixtures.json")
SPARSE = {192: (309, 204, 113), 128: (312, 117, 39), 96: (249, 55, 27), 64: (82, 32, 18)}
SPARSE_KEPT = {309: 300, 312: 303, 249: 238, 82: 66}  # the others are means
_BOTH = (128, 64)
ENGINE = {
    **dict.fromkeys(("fastervlm", "hiprune", "cdpruner", "divprune", "scope", "mmtok", "holov", "otprune"), _BOTH),
    **dict.fromkeys(("visionzip", "trim", "fastv", "pyramiddrop"), _BOTH),
    "dart": (132, 68),
    "sparsevlm": (309, 249, 82),
    "sparsevlm-plus": (300, 66),
}
ARRAYS = {
    **dict.fromkeys(("apet", "tokencarve-svd", "prumerge", "vispruner"), _BOTH),
    **dict.fromkeys(("cdpruner", "divprune"), (192,)),
    "prunesid": (127, 63),
    "tome": (400,),
    "v2drop": (288,),
    "evs": (128, 96),
    **dict.fromkeys(("everest", "vidcom2"), _BOTH),
    "token-dynamics": (32, 12),
}
GRID = (8, 8, 9)  # of the methods for video, that compare arrays in float64: a clip's tokens are often nearly alike
VIDEO = ("evs", "everest", "vidcom2", "token-dynamics")
BUDGETS = {
    name: tuple(dict.fromkeys((*ENGINE.get(name, ()), *ARRAYS.get(name, ())))) for name in sorted({*ENGINE, *ARRAYS})
}
# Where the engine's cuts stand, if not before the decoder
LAYERS = {"fastv": 2, "dart": 2, "sparsevlm": 3, "sparsevlm-plus": 3, "pyramiddrop": 8}
# Tokens of an image that may be missing, by method, budget and image
DIFFERENT = {
    ("tokencarve-svd", 64, 3): [487],  # and 141 have one fused rank, 909, at the border between the two sets
}
