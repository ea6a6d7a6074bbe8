"""Methods that read the vision tower, on examples worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokencarve_jax import tokens as base
from tokencarve_jax.methods.prunesid import quotas
from tokencarve_jax.methods.tome import block_counts
from tokencarve_jax.registry import COMPRESSORS


def run(name, values, keep, **evidence):
    values = np.asarray(values, np.float32)
    evidence = {key: jnp.asarray(value, jnp.float32) for key, value in evidence.items()}
    left = COMPRESSORS[name](base.Tokens.of(values), keep=keep, **evidence)
    return left.indices.tolist(), left.assignment.tolist(), left.tokens.values.tolist()


def options(name, values, keep, changed, **evidence):
    select = COMPRESSORS[name].replace("changed", **changed)
    evidence = {name: what if name == "key" else jnp.asarray(what, jnp.float32) for name, what in evidence.items()}
    return select(base.Tokens.of(jnp.asarray(values, jnp.float32)), keep=keep, **evidence)


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


def test_fastervlm_by_hand():
    attention = [0.1, 0.4, 0.3, 0.1, 0.1]
    assert run("fastervlm", np.arange(5.0)[:, None], 2, class_attention=attention)[:2] == ([1, 2], [-1, 0, 1, -1, -1])
    assert run("fastervlm", np.arange(5.0)[:, None], 3, class_attention=attention)[0] == [
        0,
        1,
        2,
    ]  # the lowest of equals


def test_vispruner_by_hand():
    # 5 and 0 are important. In line, by attention: 1, 2, 3, 4 at 40, 60, 100 and 95 degrees. At the even places are 1,
    # 20 degrees from 2, and 3, 5 degrees from 4.
    given = {
        "class_attention": [0.15, 0.12, 0.1, 0.08, 0.05, 0.5],
        "tower_features": direction(0, 40, 60, 100, 95, 200),
    }
    assert run("vispruner", np.ones((6, 1)), 5, **given)[:2] == ([0, 1, 2, 4, 5], [0, 1, 2, -1, 3, 4])
    assert run("vispruner", np.ones((6, 1)), 4, **given)[0] == [0, 2, 4, 5]


def test_vispruner_takes_as_many_rounds_as_it_needs():
    # No important token. Of 1, 3, 0, 2 in line those at even places, 1 and 0, leave; of 3 and 2 then 3.
    given = {"class_attention": [0.2, 0.4, 0.1, 0.3], "tower_features": direction(0, 10, 30, 35)}
    assert run("vispruner", np.ones((4, 1)), 1, **given)[0] == [2]
    with pytest.raises(ValueError, match="important must be a share"):
        options("vispruner", np.ones((4, 1)), 1, {"important": -0.1}, **given)


def test_hiprune_by_hand():
    # A 4 x 4 image, one anchor at row 1, column 1, its four neighbours; 6 is among them, so the register is 15.
    middle, deep = np.full(16, 0.01), np.full(16, 0.01)
    middle[5], deep[6], deep[15] = 0.5, 0.5, 0.3
    given = {"middle_attention": middle, "global_attention": deep}
    assert options("hiprune", np.ones((16, 1)), 6, {"alpha": 1.0}, **given).indices.tolist() == [1, 4, 5, 6, 9, 15]
    # Without an anchor there are registers alone.
    assert run("hiprune", np.ones((16, 1)), 2, **given)[0] == [6, 15]


def test_hiprune_counts_neighbours_along_the_raster():
    """As released; and what is outside of the image is its first or last token."""
    middle, deep = np.full(16, 0.01), np.full(16, 0.01)
    middle[7], deep[[12, 13, 14]] = 0.5, 0.5
    given = {"middle_attention": middle, "global_attention": deep}
    square = options("hiprune", np.ones((16, 1)), 6, {"alpha": 1.0}, **given)
    assert square.indices.tolist() == [3, 6, 7, 8, 11, 12]  # the last of its row, and so 8 is beside it
    wide = options("hiprune", np.ones((16, 1)), 6, {"alpha": 1.0, "width": 8}, **given)
    assert wide.indices.tolist() == [0, 6, 7, 8, 12, 15]
    own = base.Tokens.of(np.ones((16, 1), np.float32), grid=(1, 2, 8))
    assert (
        COMPRESSORS["hiprune"].replace("own", alpha=1.0)(own, keep=6, **given).indices.tolist() == wide.indices.tolist()
    )
    for wrong in ({"alpha": 1.5}, {"width": 0}):
        with pytest.raises(ValueError, match="must be"):
            options("hiprune", np.ones((16, 1)), 6, wrong, **given)


def test_prumerge_by_hand():
    # 0 and 1 are kept and each takes its nearest, 2, in; 2 and 3 are pruned, and 3 is the stronger.
    given = {"class_attention": [0.4, 0.3, 0.1, 0.2], "tower_keys": direction(0, 40, 10, 90)}
    values = [[10.0], [20.0], [30.0], [40.0]]
    left = options("prumerge", values, 3, {"nearest": 1}, **given)
    assert left.indices.tolist() == [0, 1, 3]
    assert left.assignment.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(left.tokens.values[:, 0], [13, 23, 11], rtol=1e-6)
    assert left.tokens.sizes.tolist() == [1, 1, 2]
    # One row for all of them.
    indices, assignment, rows = run("prumerge", values, 1, **given)
    assert (indices, assignment) == ([0], [0, 0, 0, 0])
    np.testing.assert_allclose(rows, [[21.0]], rtol=1e-6)


def test_prumerge_plus_by_hand():
    # 3 for its attention; of the seven others those at places 0, 2 and 4; the row for the rest is at 6.
    given = {"class_attention": [0.01, 0.02, 0.03, 0.5, 0.04, 0.05, 0.2, 0.1], "tower_keys": np.eye(8)}
    left = options("prumerge-plus", 10.0 * np.arange(8)[:, None], 5, {"nearest": 0}, **given)
    assert left.indices.tolist() == [0, 2, 3, 5, 6]
    assert left.assignment.tolist() == [0, 4, 1, 2, 4, 3, 4, 4]
    np.testing.assert_allclose(left.tokens.values[:, 0], [0, 20, 30, 50, 0.2 + 1.6 + 12 + 7], rtol=1e-6)
    for wrong in ({"spatial": 2.0}, {"nearest": -1}):
        with pytest.raises(ValueError, match="must be"):
            options("prumerge", np.ones((8, 1)), 5, wrong, **given)


def test_trim_by_hand():
    # 1 and 4 are the most relevant; 0, 2 and 3 become their mean where 3 stood.
    values, given = [[3.0], [10.0], [6.0], [0.0], [20.0]], {"relevance_dot": [-9.0, 2.0, -1.0, -1.0, 3.0]}
    assert run("trim", values, 3, **given) == ([1, 3, 4], [1, 0, 1, 1, 2], [[10.0], [3.0], [20.0]])
    assert run("trim", values, 4, **given) == ([1, 2, 3, 4], [2, 0, 1, 2, 3], [[10.0], [6.0], [1.5], [20.0]])
    assert run("trim", values, 1, **given) == ([4], [0] * 5, [[pytest.approx(7.8)]])


def test_prunesid_by_hand():
    # n = 8: two components, a quarter of the mean cosine. Rows of one sign pattern are one group: 0 to 5, and 6 to 9.
    wide, thin = np.array([1.0, -1, 1, -1]), np.array([1.0, 1, -1, -1])
    features = np.stack([*[3 * wide] * 4, 3 * wide + 1, 3 * wide + 1, *[thin] * 4])
    attention = [0.10, 0.11, 0.12, 0.13, 0.14, 0.05, 0.04, 0.01, 0.02, 0.03]
    given = {"class_attention": attention, "tower_features": features}
    # All of a group are alike: one distinct token each. Both bounds, 1, are raised until they add up to 8: 4 and 4. Of
    # the 5 that are left after one each, round(5 / 2) = 2 and 3 more, so 3 and 4 by attention.
    assert run("prunesid", np.eye(10), 7, **given)[0] == [2, 3, 4, 6, 7, 8, 9]
    # At K = 1 and n = 2 there is one group, and the highest attention.
    assert run("prunesid", np.eye(10), 1, **given)[0] == [4]


def test_prunesid_quotas_by_hand():
    # One each of 11, and of the other 8 as 14 : 4 : 4, so 5, 2, 1. The first has more than 5, which goes to the second.
    distinct = jnp.array([14, 4, 4])
    assert quotas(distinct, distinct, 12).tolist() == [5, 4, 2]
    # Bounds of 5, 1 and 1 come to 7: raised by 3 to 8, 2 and 4, as the second has no more; 8 : 1 : 1 is 6, 1, 1.
    assert quotas(jnp.array([14, 2, 4]), jnp.array([8, 1, 1]), 12).tolist() == [7, 2, 2]


def test_prunesid_takes_the_distinct_first():
    # One group at n = 4. The mean cosine of 0, 0, 90 and 90 degrees is 1/3, and an eighth of it lets 2 stay beside 0.
    given = {"class_attention": [0.4, 0.3, 0.2, 0.1], "tower_features": direction(0, 0, 90, 90)}
    assert run("prunesid", np.eye(4), 3, **given)[0] == [0, 1, 2]
    more = {"class_attention": [0.4, 0.3, 0.2, 0.25, 0.1], "tower_features": direction(0, 0, 0, 0, 90)}
    assert run("prunesid", np.eye(5), 2, **more)[0] == [0, 4]


def test_apet_by_hand():
    values = np.array([[4.0, 0, 0], [1, 0, 1], [0, 3, 0], [2, 1, 2], [3, 0, 0]])
    keys = [jax.random.key(seed) for seed in range(40)]
    first = next(key for key in keys if jax.random.uniform(key) < 0.2)  # of five, 0
    fourth = next(key for key in keys if 0.6 < jax.random.uniform(key) < 0.8)
    # 2 is the farthest from 0. Beyond their plane are 3, by 2, and 1, by 1; 0 is the first of those within it. 3 takes
    # in what is below, and the others' rows become the basis.
    left = options("apet", values, 3, {"basis": 2}, key=first)
    assert left.indices.tolist() == [0, 1, 3]
    assert left.assignment.tolist() == [0, 1, 2, 2, 2]
    np.testing.assert_allclose(left.tokens.values, [[4, 0, 0], [0, 3, 0], [5 / 3, 4 / 3, 2 / 3]], rtol=1e-6)
    assert left.tokens.sizes.tolist() == [1, 1, 3]
    # Beyond the line of 3: 0 by sqrt(80) / 3, 4 by sqrt(45) / 3, 2 by sqrt(72) / 3; 0, 2 stand and 2 becomes 3.
    left = options("apet", values, 2, {"basis": 1}, key=fourth)
    assert left.indices.tolist() == [0, 2]
    np.testing.assert_allclose(left.tokens.values, [[10 / 4, 1 / 4, 3 / 4], values[3]], rtol=1e-6)
    # One row is the longest token's, and all join it.
    left = options("apet", values, 1, {}, key=first)
    assert (left.indices.tolist(), left.assignment.tolist()) == ([0], [0] * 5)
    with pytest.raises(ValueError, match="basis must be 1 or more"):
        options("apet", values, 3, {"basis": 0}, key=first)


def test_holov_by_hand():
    # Two crops of three. The first are alike (variance 1/2), the second at right angles (none): 100 * 1.09 and 200,
    # shares 0.35 and 0.65. Of three that is 1.06 and 1.94, and the third goes to the second.
    values = np.array([[1.0, 0, 0]] * 3 + [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    attention = [0.05, 0.1, 0.15, 0.25, 0.15, 0.2]
    left = options("holov", values, 3, {"crops": 2}, class_attention=attention)
    assert left.indices.tolist() == [2, 3, 5]
    # At 0.99 of the score and 4 places, the second has room for 3: the best of the others fills up.
    left = options("holov", values, 4, {"crops": 2}, class_attention=[0.001, 0.002, 0.003, 0.3, 0.3, 0.3])
    assert left.indices.tolist() == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="crops must be"):
        options("holov", values, 4, {"crops": 0}, class_attention=attention)


def test_holov_variety_decides_between_crops():
    # Equal attention in both; only the first has variance, and so the odd place.
    first = np.array([[1.0, 0, 0]] * 3 + [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    given = {"class_attention": np.full(6, 0.1)}
    assert options("holov", first, 3, {"crops": 2}, **given).indices.tolist() == [0, 1, 3]
    assert options("holov", first[::-1], 3, {"crops": 2}, **given).indices.tolist() == [0, 3, 4]
