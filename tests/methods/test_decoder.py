"""Controls, FastV, PyramidDrop, SparseVLM, DART and V2Drop against float64 oracles, by hand, and on awkward tokens."""

import collections
import math

import jax
import numpy as np
import pytest

from tests import oracle
from tests.methods.oracles import decoder as oracles
from tokencarve_jax import COMPRESSORS, Tokens
from tokencarve_jax.methods import sparsevlm, uniform

# Sets, tokens, width, kept: odd sizes, a square raster, one, nearly all, half.
SHAPES = [(15, 37, 21, 9), (15, 36, 24, 9), (10, 25, 16, 1), (10, 29, 33, 27), (10, 64, 17, 31), (8, 36, 12, 35)]
WORDS, KEYS, HEADS = 9, 11, 17


def sets(b, n, d, kept):
    """Three kinds of tokens, unequal numbers of valid ones anywhere, some broken, hostile padding; words likewise."""
    rng = np.random.default_rng([b, n, d])
    values = np.stack([kind_of(rng, i % 3, n, d) for i in range(b)])
    made = {
        "values": values,
        "previous": values - rng.normal(size=(b, n, d)),
        "keys": rng.normal(size=(b, n, KEYS)) * np.exp(rng.normal(size=(b, n, 1))),
        "attention": np.stack([rng.dirichlet(np.ones(n)) for _ in range(b)]),
        "text_attention": np.stack([rng.dirichlet(np.ones(n), size=WORDS) for _ in range(b)]),
        "head_attention": rng.normal(size=(b, HEADS, WORDS, n)),
        "text": rng.normal(size=(b, WORDS, d)),
        "text_hidden": rng.normal(size=(b, WORDS, d)) + values.mean(1, keepdims=True),
        "text_keys": rng.normal(size=(b, WORDS, KEYS)),
        "text_valid": np.arange(WORDS) >= rng.integers(0, WORDS, (b, 1)),
        "valid": np.ones((b, n), bool),
    }
    for i in range(0, b, 2):
        count = max(kept // 2, 1) if i == 2 else rng.integers(min(kept + 1, n), n + 1)
        made["valid"][i, rng.permutation(n)[count:]] = False
    for i in range(0, b, 3):
        made["values"][i, rng.integers(n), 0] = [np.nan, np.inf, -np.inf][i // 3 % 3]
        made["attention"][i, rng.integers(n)] = np.inf
        made["previous"][i, rng.integers(n), 0] = np.nan
        made["text_attention"][i, :, rng.integers(n)] = np.nan
        made["head_attention"][i, 3, :, rng.integers(n)] = np.nan
        made["keys"][i, rng.integers(n), 3] = -np.inf
    for name in ("values", "keys"):
        made[name][~made["valid"]] *= 1e6
    for name in ("text", "text_hidden", "text_keys", "text_attention"):
        made[name][~made["text_valid"]] = np.nan
    made["head_attention"] = np.where(made["text_valid"][:, None, :, None], made["head_attention"], np.nan)
    return {name: array if array.dtype == bool else array.astype(np.float32) for name, array in made.items()}


def kind_of(rng, kind, n, d):
    if kind == 0:
        return oracle.decaying(rng, n, d, power=0.5)
    if kind == 1:  # groups of near-duplicates
        return rng.normal(size=(n // 3, d))[rng.integers(0, n // 3, n)] + 0.1 * rng.normal(size=(n, d))
    return rng.normal(size=(n, d)) + 0.5 * rng.normal(size=d)


SPARSE, PLUS = (("text_attention", "text", "text_valid"), ("head_attention", "text", "text_valid"))
DART = ("keys", "text_keys", "text_hidden", "text_valid")
TABLE = {  # the oracle, what the method is told by which of the names above, what the oracle is told
    "uniform": (oracles.uniform, {}, ()),
    "pooling": (oracles.pooling, {}, ()),
    "norm": (oracles.norm, {}, ()),
    "fastv": (oracles.attended, {"query_attention": "attention"}, ("attention",)),
    "pyramiddrop": (oracles.attended, {"next_attention": "attention"}, ("attention",)),
    "sparsevlm": (oracles.sparsevlm, {name: name for name in SPARSE}, SPARSE),
    "sparsevlm-plus": (oracles.sparsevlm_plus, {name: name for name in PLUS}, PLUS),
    "v2drop": (oracles.v2drop, {"previous_hidden": "previous"}, ("previous",)),
    "dart": (oracles.dart, {name: name for name in DART}, DART),
}


@pytest.mark.parametrize("name", TABLE)
def test_equals_the_oracle(name):
    judge, told, asked = TABLE[name]
    clear, tested = 0, 0
    for b, n, d, kept in SHAPES:
        made, side = sets(b, n, d, kept), math.isqrt(n)
        grid = (1, side, side) if side * side == n else None
        tokens = Tokens.of(made["values"], valid=made["valid"], grid=grid)
        left = COMPRESSORS[name](tokens, keep=kept, **{kind: made[source] for kind, source in told.items()})
        left = jax.tree.map(np.asarray, left)
        for i in range(b):
            given = [made[kind][i] for kind in asked]
            indices, assignment, margin = judge(made["values"][i], made["valid"][i], *given, kept)
            tested += 1
            if margin > 1:
                clear += 1
                assert left.indices[i].tolist() == indices, (n, kept, i)
                assert left.assignment[i].tolist() == assignment, (n, kept, i)
                check_means(made["values"][i], jax.tree.map(lambda leaf, i=i: leaf[i], left), assignment)
    assert tested >= 50
    assert clear >= 0.9 * tested


def check_means(values, left, assignment):
    """Every row is the plain mean of those that live on in it."""
    for row in range(len(left.indices)):
        members = [values[i].astype(np.float64) for i, joined in enumerate(assignment) if joined == row]
        np.testing.assert_allclose(left.tokens.values[row], sum(members) / len(members), rtol=1e-5, atol=1e-5)
        assert left.tokens.sizes[row] == len(members)


def test_equal_attention_goes_by_index():
    tokens = Tokens.of(np.eye(6, dtype=np.float32))
    attention = np.array([0.1, 0.3, 0.1, 0.3, 0.1, 0.1], np.float32)
    for name, kind in (("fastv", "query_attention"), ("pyramiddrop", "next_attention")):
        assert COMPRESSORS[name](tokens, keep=4, **{kind: attention}).indices.tolist() == [0, 1, 2, 3]
    assert COMPRESSORS["norm"](tokens, keep=2).indices.tolist() == [0, 1]


def test_long_tokens_do_not_overflow():
    values = np.array([[3e30, 0], [1e30, 1e30], [2e38, 2e38], [1, 1]], np.float32)
    assert COMPRESSORS["norm"](Tokens.of(values), keep=2).indices.tolist() == [0, 2]


def test_the_grid_by_hand():
    assert uniform.grid(4, 4, 4).tolist() == [5, 7, 13, 15]
    assert uniform.grid(3, 3, 1).tolist() == [4]
    assert uniform.grid(3, 3, 3).tolist() == [1, 6, 8]  # a line of one and a line of two
    assert uniform.grid(2, 8, 4).tolist() == [9, 11, 13, 15]
    for height, width in ((1, 1), (2, 2), (3, 3), (5, 5), (24, 24), (16, 36), (1, 9), (9, 1)):
        for keep in range(1, height * width + 1):
            found = uniform.grid(height, width, keep)
            assert len(set(found.tolist())) == keep
            assert (np.sort(found) == found).all()
            assert found.max() < height * width


def test_a_grid_that_is_not_square():
    """16 x 36 has as many tokens as 24 x 24; padding anywhere is no part of it."""
    line, column = np.divmod(np.arange(576), 36)
    values = np.stack([line, column], axis=1).astype(np.float32)
    for stands in (np.arange(576), np.sort(np.random.default_rng(0).permutation(640)[:576])):
        padded, valid = np.full((stands.max() + 1, 2), 99, np.float32), np.zeros(stands.max() + 1, bool)
        padded[stands], valid[stands] = values, True
        tokens = Tokens.of(padded, valid=valid, grid=(1, 16, 36))
        found = COMPRESSORS["uniform"](tokens, keep=36).tokens.values
        assert np.unique(found[:, 0]).tolist() == [2, 6, 10, 14]
        assert np.unique(found[:, 1]).tolist() == list(range(2, 36, 4))
        left = COMPRESSORS["pooling"](tokens, keep=144)
        want = np.stack(np.divmod(np.arange(144), 18), axis=1) * 2 + 0.5
        np.testing.assert_array_equal(left.tokens.values, want)
        assert left.tokens.grid is None  # what is left of them is no grid
    for wrong in ((16, 36), (1, 24, 25), (0, 24, 24)):
        with pytest.raises(ValueError, match="grid must be"):
            Tokens.of(values, grid=wrong)


def test_patches_by_hand():
    values = np.arange(16, dtype=np.float32)[:, None]
    left = COMPRESSORS["pooling"](Tokens.of(values, grid=(1, 4, 4)), keep=4)
    assert left.indices.tolist() == [0, 2, 8, 10]
    assert left.tokens.values[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert left.tokens.sizes.tolist() == [4, 4, 4, 4]
    frames = COMPRESSORS["pooling"](Tokens.of(values, grid=(2, 4, 2)), keep=4)  # 2 x 2 patches of each frame
    assert frames.indices.tolist() == [0, 4, 8, 12]
    stretches = COMPRESSORS["pooling"](Tokens.of(values, grid=(1, 4, 4)), keep=5)
    assert stretches.indices.tolist() == [1, 5, 8, 11, 14]
    assert stretches.tokens.sizes.tolist() == [4, 3, 3, 3, 3]
    # Tokens that were pooled weigh what they stand for.
    again = COMPRESSORS["pooling"](stretches.tokens, keep=1)
    np.testing.assert_allclose(again.tokens.values, [[7.5]], rtol=1e-6)
    assert again.tokens.sizes.tolist() == [16]


def test_sparsevlm_splits_k_as_published():
    assert [sparsevlm.split(n, k)[::2] for n, k in ((576, 309), (309, 204), (204, 113))] == [
        (300, 9),
        (200, 4),
        (110, 3),
    ]
    assert [sparsevlm.split(n, k)[::2] for n, k in ((576, 312), (312, 117), (117, 39))] == [(303, 9), (110, 7), (36, 3)]
    assert [sparsevlm.split(n, k)[::2] for n, k in ((576, 82), (82, 32), (32, 18))] == [(66, 16), (30, 2), (17, 1)]
    for n in (2, 3, 17, 64, 100):
        for keep in range(1, n):
            kept, candidates, means = sparsevlm.split(n, keep)
            assert (kept, means) == oracles.sparsevlm_split(n, keep)
            assert means <= candidates <= n - kept


def test_raters_are_those_of_the_decoders_input():
    """Where the engine says what share of the image each word had there, tokens and words of the layer have no say."""
    made = sets(*SHAPES[0])
    tokens = Tokens.of(made["values"], valid=made["valid"])
    asked = made["text_valid"] & (np.arange(WORDS) >= WORDS - 2)
    for name, kinds in (("sparsevlm", SPARSE), ("sparsevlm-plus", PLUS)):
        told = {kind: made[kind] for kind in kinds} | {"text_valid": asked}
        left = [
            COMPRESSORS[name](tokens, keep=9, **told, text_relevance=np.float32(np.arange(WORDS) == rater) + 0 * asked)
            for rater in (WORDS - 2, WORDS - 1)
        ]
        alone = {"text_valid": np.broadcast_to(np.arange(WORDS) == WORDS - 1, asked.shape)}
        expected = COMPRESSORS[name](tokens, keep=9, **{**told, **alone})
        np.testing.assert_array_equal(left[1].indices, expected.indices)
        assert (np.asarray(left[0].indices) != np.asarray(left[1].indices)).any()


def test_sparsevlm_copies_go_by_index():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(5, 8)), 8, axis=0).astype(np.float32)
    told = {"text_attention": np.full((3, 40), 0.02, np.float32), "text": np.zeros((3, 8)), "text_valid": np.ones(3)}
    left = COMPRESSORS["sparsevlm"](Tokens.of(values), keep=11, **told)
    # 9 are kept; the next 10 are copies of 2 tokens, and the first copy of each is a centre.
    assert left.indices.tolist() == [*range(9), 9, 16]
    assert left.assignment.tolist() == [*range(9), *[9] * 7, *[10] * 3, *[-1] * 21]
    np.testing.assert_allclose(left.tokens.values[9:], values[[9, 16]], rtol=1e-6)


def test_dart_spreads_what_is_left_over_few_words():
    made = sets(*SHAPES[0])
    told = {name: made[name][1] for name in DART}
    tokens = Tokens.of(made["values"][1])
    for words in range(WORDS + 1):
        told["text_valid"] = np.arange(WORDS) < words
        told["text_keys"], told["text_hidden"] = (
            np.nan_to_num(made["text_keys"][1]),
            np.nan_to_num(made["text_hidden"][1]),
        )
        left = COMPRESSORS["dart"](tokens, keep=9, **told)
        assert len(set(left.indices.tolist())) == 9
    no_text = COMPRESSORS["dart"].replace("dart-image", text_pivots=0)
    np.testing.assert_array_equal(
        no_text(tokens, keep=9, **told).indices,
        COMPRESSORS["dart"](tokens, keep=9, **{**told, "text_valid": np.zeros(WORDS, bool)}).indices,
    )


def picks(key, n=20, keep=5, draws=6000, **of):
    tokens = Tokens.of(np.ones((draws, n, 1), np.float32), **of)
    return np.asarray(COMPRESSORS["random"](tokens, keep=keep, key=key).indices)


def test_random_picks_each_token_equally_often():
    drawn = picks(jax.random.key(0))
    share = np.bincount(drawn.ravel(), minlength=20) / len(drawn)
    assert (abs(share - 5 / 20) < 5 * np.sqrt(0.25 * 0.75 / len(drawn))).all(), share
    pairs = collections.Counter((int(a), int(b)) for row in drawn for a in row for b in row if a < b)
    chance = 5 * 4 / (20 * 19)
    spread = 5 * np.sqrt(chance * (1 - chance) / len(drawn))
    assert all(abs(pairs[a, b] / len(drawn) - chance) < spread for b in range(20) for a in range(b))


def test_random_is_its_key_and_the_places():
    first = picks(jax.random.key(0), draws=50)
    np.testing.assert_array_equal(first, picks(jax.random.key(0), draws=50))
    assert (first != picks(jax.random.key(1), draws=50)).any(-1).mean() > 0.9
    assert len({tuple(row) for row in first.tolist()}) > 45  # each set draws for itself
    # Padding in front, and behind, with the same places: the same patches.
    valid = (np.arange(30) >= 4) & (np.arange(30) < 24)
    padded = picks(jax.random.key(0), n=30, draws=50, valid=np.tile(valid, (50, 1)), positions=np.arange(30) - 4)
    np.testing.assert_array_equal(padded - 4, first)


def test_random_leaves_padding_for_last():
    valid = np.tile(np.arange(20) % 7 < 3, (50, 1))
    drawn = picks(jax.random.key(0), draws=50, valid=valid)
    assert np.take_along_axis(valid, drawn, -1).all()
