"""Methods that read the vision tower against float64 oracles, and against examples worked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.oracles import tower
from tests.oracle import decaying
from tokencarve_jax import tokens as base
from tokencarve_jax.methods.tome import block_counts
from tokencarve_jax.registry import COMPRESSORS

SETS, WIDTH, DEPTH = 12, 24, 16  # of a batch, of a value, of a key
SHAPES = ((64, 24), (48, 40), (37, 36), (33, 1), (50, 7))  # N, K
HALVES = ((64, 32), (48, 40), (37, 19), (33, 32), (2, 1))
TIE = 3e-6  # float32 does not tell cosines apart that are closer

METHODS = {
    "tome": (tower.tome, ("tower_keys",), HALVES),
    "visionzip": (tower.visionzip, ("class_attention", "tower_keys"), SHAPES),
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
        "middle_attention": np.stack([attention(rng, count) for _ in range(SETS)]),
        "tower_keys": np.stack([near_duplicates(rng, decaying(rng, count, DEPTH)) for _ in range(SETS)]),
        "tower_features": np.stack([near_duplicates(rng, decaying(rng, count, DEPTH)) for _ in range(SETS)]),
    }
    evidence = {key: evidence[key].astype(np.float32) for key in METHODS[name][1]}
    values = np.stack([near_duplicates(rng, decaying(rng, count, WIDTH)) for _ in range(SETS)])
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
    left = COMPRESSORS[name](tokens, keep=keep, **evidence)
    clear = 0
    for lane in range(SETS):
        mine = [np.asarray(array[lane]) for array in (left.indices, left.assignment, left.tokens.values)]
        values, sizes = np.asarray(tokens.values[lane]), np.asarray(tokens.sizes[lane])
        told = {key: array[lane] for key, array in evidence.items()}
        # What is valid and broken comes before padding.
        seen = np.flatnonzero(np.asarray(tokens.valid[lane]))
        seen = np.concatenate([seen, np.setdiff1d(np.arange(count), seen)])
        ranked = {"usable": usable[lane], "keep": keep, "sizes": sizes, "spare": list(seen)}
        indices, assignment, rows, margin = oracle(values, **ranked, **told)
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


def run(name, values, keep, **evidence):
    values = np.asarray(values, np.float32)
    evidence = {key: jnp.asarray(value, jnp.float32) for key, value in evidence.items()}
    left = COMPRESSORS[name](base.Tokens.of(values), keep=keep, **evidence)
    return left.indices.tolist(), left.assignment.tolist(), left.tokens.values.tolist()


def direction(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def test_tome_by_hand():
    # A = 0, 2, 4 and B = 1, 3. Token 0 is 20 degrees from 1, token 2 is 10 from 3, token 4 is 30 from 1.
    keys = direction(0, 20, 90, 80, 50)
    values = [[1.0], [2.0], [4.0], [8.0], [16.0]]
    assert run("tome", values, 4, tower_keys=keys) == ([0, 1, 3, 4], [0, 1, 2, 2, 3], [[1.0], [2.0], [6.0], [16.0]])
    assert run("tome", values, 3, tower_keys=keys) == ([1, 3, 4], [0, 0, 1, 1, 2], [[1.5], [6.0], [16.0]])


def test_tome_two_merge_into_one():
    keys = direction(0, 5, 8, 180)  # 0 and 2 are both closest to 1
    left = COMPRESSORS["tome"](
        base.Tokens.of(jnp.array([[3.0], [6.0], [0.0], [9.0]]), sizes=[1, 2, 3, 1]), keep=2, tower_keys=keys
    )
    assert left.assignment.tolist() == [0, 0, 0, 1]
    assert left.tokens.values.tolist() == [[2.5], [9.0]]  # (3 + 2 * 6 + 3 * 0) / 6
    assert left.tokens.sizes.tolist() == [6, 1]


def test_tome_merges_half_at_most():
    with pytest.raises(ValueError, match="of 5 it leaves 3 or more, got keep=2"):
        run("tome", np.ones((5, 1)), 2, tower_keys=np.ones((5, 2)))


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ((10, 4, 3), (8, 6, 4)),
        ((16, 1, 4), (8, 4, 2, 1)),
        ((9, 9, 2), (9, 9)),
        ((7, 2, 2), (4, 2)),
        ((20, 4, 3), (15, 8, 4)),
    ],
)
def test_block_counts(arguments, counts):
    assert block_counts(*arguments) == counts


def test_block_counts_hold_everywhere():
    for count in range(1, 40):
        for keep in range(1, count + 1):
            for blocks in range(1, 7):
                if count > keep * 2**blocks:
                    with pytest.raises(ValueError, match="at most half each"):
                        block_counts(count, keep, blocks)
                    continue
                before = count
                for after in (counts := block_counts(count, keep, blocks)):
                    assert (before + 1) // 2 <= after <= before
                    before = after
                assert counts[-1] == keep
    assert [a - b for a, b in zip((576, *block_counts(576, 192, 24)), block_counts(576, 192, 24), strict=False)] == [
        16
    ] * 24
    for wrong in ((4, 0, 1), (4, 5, 1), (4, 2, 0)):
        with pytest.raises(ValueError, match=r"keep must|blocks must"):
            block_counts(*wrong)


def test_visionzip_by_hand():
    # K = 7 has one contextual token: the first in raster order of those that are left, 1, plus the mean of 5 and 8.
    attention = [0.2, 0.01, 0.19, 0.18, 0.17, 0.02, 0.16, 0.15, 0.03]
    values = np.array([[10.0], [1.0], [20.0], [30.0], [40.0], [3.0], [50.0], [60.0], [5.0]])
    indices, assignment, rows = run("visionzip", values, 7, class_attention=attention, tower_keys=np.eye(9))
    assert indices == [0, 1, 2, 3, 4, 6, 7]
    assert assignment == [0, 1, 2, 3, 4, 1, 5, 6, 1]
    assert rows == [[10.0], [5.0], [20.0], [30.0], [40.0], [50.0], [60.0]]


def test_visionzip_without_contextual_tokens_prunes():
    left = run("visionzip", [[1.0], [2.0], [3.0]], 1, class_attention=[0.1, 0.3, 0.2], tower_keys=np.eye(3))
    assert left == ([1], [-1, 0, -1], [[2.0]])


def test_visionzip_joins_the_most_similar_target():
    # Two contextual of four: the rest is tokens 2 to 7, at a stride of 3 the targets are 2 and 5.
    select = COMPRESSORS["visionzip"].replace("half", contextual=0.5)
    attention = np.array([0.3, 0.2, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    keys = direction(0, 0, 0, 80, 10, 90, 60, 20)
    values = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0], [8.0]])
    left = select(base.Tokens.of(jnp.asarray(values, jnp.float32)), keep=4, class_attention=attention, tower_keys=keys)
    assert left.indices.tolist() == [0, 1, 2, 5]
    assert left.assignment.tolist() == [0, 1, 2, 3, 2, 3, 3, 2]
    assert left.tokens.values.tolist() == [[1.0], [2.0], [9.5], [11.5]]
    assert left.tokens.sizes.tolist() == [1, 1, 3, 3]
    with pytest.raises(ValueError, match="contextual must be a share"):
        COMPRESSORS["visionzip"].replace("all", contextual=2.0)(
            left.tokens, keep=2, class_attention=[0.0] * 4, tower_keys=keys[:4]
        )
