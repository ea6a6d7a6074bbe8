"""Methods that read the vision tower against float64 oracles."""

import jax
import numpy as np
import pytest

from tests.methods.oracles import tower
from tests.oracle import decaying
from tokencarve_jax import tokens as base
from tokencarve_jax.registry import COMPRESSORS

SETS, WIDTH, DEPTH = 17, 24, 16  # of a batch, of a value, of a key
SHAPES = ((48, 40), (37, 7), (33, 1))  # N, K
HALVES = ((48, 40), (37, 19), (2, 1))
KEY = jax.random.key(5)
TIE = 3e-6  # float32 does not tell cosines apart that are closer

METHODS = {
    "tome": (tower.tome, ("tower_keys",), HALVES),
    "visionzip": (tower.visionzip, ("class_attention", "tower_keys"), SHAPES),
    "fastervlm": (tower.fastervlm, ("class_attention",), SHAPES),
    "vispruner": (tower.vispruner, ("class_attention", "tower_features"), SHAPES),
    "hiprune": (tower.hiprune, ("middle_attention", "global_attention"), (*SHAPES, (81, 60))),
    "prumerge": (tower.prumerge, ("class_attention", "tower_keys"), SHAPES),
    "prumerge-plus": (tower.prumerge_plus, ("class_attention", "tower_keys"), SHAPES),
    "holov": (tower.holov, ("class_attention",), SHAPES),
    "prunesid": (tower.prunesid, ("class_attention", "tower_features"), SHAPES),
    "apet": (tower.apet, (), SHAPES),
    "trim": (tower.trim, ("relevance_dot",), SHAPES),
}


def near_duplicates(rng, rows):
    for i in rng.permutation(len(rows))[: len(rows) // 4]:
        rows[i] = rows[rng.integers(len(rows))] * rng.uniform(0.5, 2)
        rows[i] += 0.02 * np.linalg.norm(rows[i]) / rows.shape[1] ** 0.5 * rng.normal(size=rows.shape[1])
    return rows


def attention(rng, count):
    weights = np.exp(1.5 * rng.normal(size=count))
    return 0.9 * weights / weights.sum()


def batch(name, count, seed=0):
    """Sets of unequal counts, their padding at the end, in front or in between; some with broken tokens."""
    rng = np.random.default_rng([seed, count, *name.encode()])
    evidence = {
        "class_attention": np.stack([attention(rng, count) for _ in range(SETS)]),
        "global_attention": np.stack([attention(rng, count) for _ in range(SETS)]),
        "middle_attention": np.stack([attention(rng, count) for _ in range(SETS)]),
        "tower_keys": np.stack([near_duplicates(rng, decaying(rng, count, DEPTH)) for _ in range(SETS)]),
        "tower_features": np.stack([near_duplicates(rng, decaying(rng, count, DEPTH)) for _ in range(SETS)]),
    }
    evidence["relevance_dot"] = rng.normal(size=(SETS, count))
    evidence = {key: evidence[key].astype(np.float32) for key in METHODS[name][1]}
    values = np.stack([near_duplicates(rng, decaying(rng, count, WIDTH)) for _ in range(SETS)])
    if name == "holov":  # the variance cancels out of a crop's score, but where it is tiny: nearly orthogonal tokens
        values[::2] = np.eye(WIDTH)[np.arange(count) % WIDTH] + 1e-3 * rng.normal(size=(count, WIDTH))
    sizes = rng.integers(1, 4, (SETS, count)).astype(np.float32)
    valid = np.ones((SETS, count), bool)
    for lane in range(3, SETS):
        padding = int(rng.integers(0, count // 2 + 1))
        where = [np.arange(count - padding, count), np.arange(padding), rng.permutation(count)[:padding]][lane % 3]
        valid[lane, where] = False
        values[lane, where] = 1e20
        for array in evidence.values():
            array[lane, where] = 9.0
    usable = valid.copy()
    arrays = [values, *evidence.values()]
    for lane in range(1, SETS, 2):
        for broken in rng.integers(0, count, 2):
            array = arrays[rng.integers(len(arrays))]
            array[(lane, broken, *[0] * (array.ndim - 2))] = [np.nan, np.inf][rng.integers(2)]
            usable[lane, broken] = False
    return base.Tokens.of(values, valid=valid, sizes=sizes), evidence, usable


def check(name, count, keep):
    """Compare a batch with the oracle; gives how many sets were decided without a tie."""
    oracle = METHODS[name][0]
    tokens, evidence, usable = batch(name, count)
    draws = "key" in COMPRESSORS[name].evidence
    left = COMPRESSORS[name](tokens, keep=keep, **evidence, **({"key": KEY} if draws else {}))
    clear = 0
    for lane in range(SETS):
        mine = [np.asarray(array[lane]) for array in (left.indices, left.assignment, left.tokens.values)]
        values, sizes = np.asarray(tokens.values[lane]), np.asarray(tokens.sizes[lane])
        told = {key: array[lane] for key, array in evidence.items()}
        told |= {"drawn": float(jax.random.uniform(KEY))} if draws else {}
        valid = np.asarray(tokens.valid[lane])
        indices, assignment, rows, margin = oracle(values, valid, usable[lane], keep, sizes, **told)
        if margin < TIE:
            continue
        clear += 1
        assert mine[0].tolist() == indices, lane
        assert mine[1].tolist() == assignment, lane
        scale = np.abs(values[usable[lane]]).max(initial=0)
        finite = usable[lane][indices]
        np.testing.assert_allclose(mine[2][finite], rows[finite], atol=1e-5 * scale, rtol=1e-5)
        np.testing.assert_array_equal(mine[2][~finite], values[indices][~finite])
        living = usable[lane] & (np.array(assignment) >= 0)
        total = np.asarray(left.tokens.sizes[lane])[finite].sum()
        assert total == sizes[living].sum(), lane
    return clear


@pytest.mark.parametrize("name", METHODS)
def test_oracle(name):
    shapes = METHODS[name][2]
    clear = sum(check(name, *shape) for shape in shapes)
    assert len(shapes) * SETS >= 50
    assert clear >= 0.9 * len(shapes) * SETS, clear
