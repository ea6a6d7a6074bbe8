"""DivPrune, CDPruner, SCOPE, MMTok, ZOO-Prune and OTPrune against float64 oracles, by hand, and on awkward tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracle
from tests.methods.oracles import greedy as oracles
from tokencarve_jax.methods import zoo_prune
from tokencarve_jax.registry import COMPRESSORS
from tokencarve_jax.scores.greedy import greedy
from tokencarve_jax.tokens import Tokens

# Images, tokens, width, kept: odd sizes, one, nearly all.
SHAPES = [(24, 37, 53, 9), (12, 24, 31, 1), (12, 29, 61, 27), (16, 50, 40, 20)]
WIDTH, WORDS, DIRECTIONS = 19, 7, 16  # of features, of the text, of ZOO-Prune
ZOO = COMPRESSORS["zoo-prune"].replace("zoo-prune-test", directions=DIRECTIONS)
KEY = jax.random.key(5)


def mixing(weights, rows):
    """A projector: row by row, not linear, and not equally steep everywhere."""
    return jnp.tanh(rows @ weights["in"]) @ weights["out"]


def by_itself(rng, kind, n, d):
    if kind == 0:
        return oracle.decaying(rng, n, d, power=0.5)
    if kind == 1:  # groups of near-duplicates
        return rng.normal(size=(n // 3, d))[rng.integers(0, n // 3, n)] + 0.1 * rng.normal(size=(n, d))
    return rng.normal(size=(n, d)) + 0.5 * rng.normal(size=d)


def images(b, n, d, kept):
    """A batch: three kinds of tokens, unequal numbers of valid ones anywhere, broken tokens, hostile padding."""
    rng = np.random.default_rng([b, n, d])
    made = {
        "values": np.stack([by_itself(rng, i % 3, n, d) for i in range(b)]),
        "tower_features": np.stack([by_itself(rng, (i + 1) % 3, n, WIDTH) for i in range(b)]),
        "class_attention": np.stack([oracles.softmax(rng.normal(size=n)) for _ in range(b)]),
        "relevance": rng.normal(size=(b, n)),
        "text": rng.normal(size=(b, WORDS, d)),
        "text_valid": np.arange(WORDS) >= rng.integers(0, WORDS, (b, 1)),
        "valid": np.ones((b, n), bool),
    }
    made["text"] += made["values"][:, :WORDS]  # about something in the picture
    for i in range(0, b, 2):
        count = kept // 2 if i == 2 else rng.integers(min(kept + 1, n), n + 1)
        made["valid"][i, rng.permutation(n)[count:]] = False
    for i in range(0, b, 3):
        for name in ("values", "tower_features", "class_attention", "relevance"):
            made[name][i, rng.integers(n)] = [np.nan, np.inf, -np.inf][rng.integers(3)]
    for name in ("values", "tower_features", "class_attention", "relevance"):
        made[name][~made["valid"]] *= 1e6
        made[name][~made["valid"] & (rng.random((b, n)) < 0.3)] = np.nan
    return {name: array if array.dtype == bool else array.astype(np.float32) for name, array in made.items()}


def projector(d):
    rng = np.random.default_rng(d)
    return {"in": rng.normal(size=(WIDTH, 23)).astype(np.float32) / 4, "out": rng.normal(size=(23, d)).astype("f")}


def evidence(name, batch):
    compressor = ZOO if name == "zoo-prune" else COMPRESSORS[name]
    told = {key: batch[key] for key in compressor.evidence if key in batch}
    if name == "zoo-prune":
        told |= {"key": KEY, "projector": jax.tree_util.Partial(mixing, projector(batch["values"].shape[-1]))}
    return compressor, told


def expected(name, image, keep):
    told = {key: image[key] for key in COMPRESSORS[name].evidence if key in image}
    if name == "zoo-prune":
        weights = {key: array.astype(np.float64) for key, array in projector(image["values"].shape[-1]).items()}
        told["projector"] = lambda row: np.tanh(row @ weights["in"]) @ weights["out"]
        told["directions"] = np.asarray(zoo_prune.unit_directions(KEY, DIRECTIONS, WIDTH))
    return getattr(oracles, name.replace("-", "_"))(image["values"], image["valid"], keep, **told)


NAMES = ["divprune", "cdpruner", "scope", "mmtok", "zoo-prune", "otprune"]


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_what_the_oracle_takes(name):
    compared = total = 0
    for b, n, d, keep in SHAPES:
        batch = images(b, n, d, keep)
        compressor, told = evidence(name, batch)
        got = compressor(Tokens.of(batch["values"], valid=batch["valid"]), keep=keep, **told)
        for i in range(b):
            indices, margin = expected(name, {key: array[i] for key, array in batch.items()}, keep)
            total += 1
            if margin > 1:
                compared += 1
                assert got.indices[i].tolist() == indices, (n, keep, i, margin)
    assert total == 64
    assert compared >= 57, compared


def cut(name, values, keep, **told):
    return COMPRESSORS[name](Tokens.of(jnp.asarray(values, jnp.float32)), keep=keep, **told).indices.tolist()


def at_angles(*degrees):
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1)


@pytest.mark.parametrize(("keep", "taken"), [(1, [3]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3])])
def test_only_the_gains_of_usable_tokens_count(keep, taken):
    tier, gains = jnp.array([0, 1, 1, 2]), jnp.array([9.0, 1.0, 5.0, jnp.nan])
    assert greedy(tier, keep, gains, lambda state: state, lambda state, *_: state).tolist() == taken


def test_divprune_by_hand():
    # 90 has its nearest neighbour farthest away (80 degrees); then 200 is 110 from it, then 0 is 90 from the nearer.
    angles = at_angles(0, 10, 90, 180, 200)
    assert [cut("divprune", angles, keep) for keep in (1, 2, 3)] == [[2], [2, 4], [0, 2, 4]]
    # A copy has a neighbour at distance 0; of two copies the first is taken.
    assert [cut("divprune", [[1, 0], [3, 0], [0, 1]], keep) for keep in (1, 2)] == [[2], [0, 2]]
    # All farther than 1 from each other, 0 farthest: padding is no neighbour.
    wide = Tokens.of(jnp.asarray(at_angles(125, 0, 240, 0)), valid=np.arange(4) < 3)
    assert COMPRESSORS["divprune"](wide, keep=1).indices.tolist() == [1]
    # One of each pair of copies, and then the others: none is taken twice.
    twice = np.tile(np.random.default_rng(0).normal(size=(20, 300)), (2, 1))
    assert {index % 20 for index in cut("divprune", twice, 20)} == set(range(20))
    assert cut("divprune", twice, 40) == list(range(40))
    # Zeros are at 1 from both others, which are at 0.2 from each other.
    assert cut("divprune", [[1, 0], [0.8, 0.6], [0, 0]], 1) == [2]


def test_cdpruner_by_hand():
    # No relevance: all start at 1, so the first; then 1 - cos^2 is 0 for its opposite and 0.36 for the third.
    opposite = [[1, 0], [-1, 0], [0.8, 0.6]]
    assert [cut("cdpruner", opposite, keep) for keep in (1, 2)] == [[0], [0, 2]]
    # The relevant come first: r = 0, 1, 1/2. The third is orthogonal to the second, and keeps all of its 1/4.
    tokens = [[1, 0], [0.6, 0.8], [0.8, -0.6]]
    relevant = {"relevance": jnp.array([0.0, 1.0, 0.5])}
    assert [cut("cdpruner", tokens, keep, **relevant) for keep in (1, 2)] == [[1], [1, 2]]
    assert cut("cdpruner", tokens, 2) == [0, 1]
    # Two dimensions hold two tokens; the others have nothing left, and follow by their index.
    assert cut("cdpruner", at_angles(0, 90, 45, 30, 60), 4) == [0, 1, 2, 3]
    rng = np.random.default_rng(1)
    flat = (rng.normal(size=(30, 2)) @ rng.normal(size=(2, 300))).astype(np.float32)
    second = min(range(1, 30), key=lambda i: abs(oracles.cosine(flat[0], flat[i])))
    # Zeros have nothing from the start. Equal relevance is none.
    assert [cut("cdpruner", [[0, 0], [1, 0], [0, 1]], keep) for keep in (1, 2)] == [[1], [1, 2]]
    assert cut("cdpruner", opposite, 2, relevance=jnp.full(3, 0.4)) == [0, 2]
    # Minimum and maximum are each image's.
    both = Tokens.of(jnp.asarray([tokens, tokens], jnp.float32))
    apart = COMPRESSORS["cdpruner"](both, keep=1, relevance=jnp.array([[0.0, 1, 0.5], [9.0, 5, 3]]))
    assert apart.indices.tolist() == [[1], [0]]
    assert cut("cdpruner", flat, 8) == sorted([0, second, *[i for i in range(1, 30) if i != second][:6]])


def test_scope_by_hand():
    # 1 covers its two copies; after it they add nothing, and the lonely one adds 1.
    copies = {"tower_features": jnp.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])}
    attention = jnp.array([0.1, 0.2, 0.19, 0.05])
    assert [cut("scope", np.eye(4), keep, class_attention=attention, **copies) for keep in (1, 2)] == [[1], [1, 3]]
    plain = COMPRESSORS["scope"].replace("plain", alpha=0.0)
    assert plain(Tokens.of(jnp.eye(4)), keep=1, class_attention=attention, **copies).indices.tolist() == [0]
    # Cosines 0.8, 0 and 0.6 give 1.8, 2.4, 1.6: the middle; then 0.2 against 0.4. Three times the attention: 5.4 first.
    between = {"tower_features": jnp.array([[1.0, 0], [0.8, 0.6], [0, 1]])}
    even, first = jnp.array([0.2, 0.2, 0.2]), jnp.array([0.6, 0.2, 0.2])
    assert [cut("scope", np.eye(3), keep, class_attention=even, **between) for keep in (1, 2)] == [[1], [1, 2]]
    assert [cut("scope", np.eye(3), keep, class_attention=first, **between) for keep in (1, 2)] == [[0], [0, 2]]
    # The sum over heads is as good as the mean. Zeros cover nothing, whatever their attention.
    assert cut("scope", np.eye(3), 2, class_attention=16 * first, **between) == [0, 2]
    nothing = {"tower_features": jnp.array([[0.0, 0], [0.8, 0.6], [0, 1]])}
    assert cut("scope", np.eye(3), 2, class_attention=first, **nothing) == [1, 2]


def test_mmtok_by_hand():
    # Features all orthogonal: every token covers itself equally well, so the text decides, and then the index.
    alone = {"tower_features": jnp.eye(3), "text_valid": jnp.array([True])}
    tokens = [[1, 0], [0, 1], [0, 1]]
    assert [cut("mmtok", tokens, keep, text=jnp.array([[0.0, 1]]), **alone) for keep in (1, 2)] == [[1], [0, 1]]
    assert [cut("mmtok", tokens, keep, text=jnp.array([[1.0, 0]]), **alone) for keep in (1, 2)] == [[0], [0, 1]]
    # Only the question counts.
    words = {"text": jnp.eye(2), "tower_features": jnp.eye(2)}
    assert cut("mmtok", np.eye(2), 1, text_valid=jnp.array([False, True]), **words) == [1]
    assert cut("mmtok", np.eye(2), 1, text_valid=jnp.array([True, False]), **words) == [0]
    broken = words | {"text": jnp.array([[jnp.nan, 1], [0, 1]])}
    assert cut("mmtok", np.eye(2), 1, text_valid=jnp.array([True, True]), **broken) == [1]
    # The middle covers the image better: softmaxes of cosines / 0.2 add up to 0.978 and 1.051, a difference of
    # 0.5 * 0.073 / 3 = 0.0122. The first covers the text better, by tanh(0.00072 / 0.04) = 0.018 or by 0.0093.
    # Padding does not make 3 a 6.
    between = np.array([[1.0, 0], [0.8, 0.6], [0, 1], [1, 0], [1, 0], [1, 0]])
    for more, first in ((0.00072, 0), (0.00037, 1)):
        cosines = np.array([0.5 + more, 0.5, 0, 1, 1, 1])
        tokens = Tokens.of(np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1), valid=np.arange(6) < 3)
        told = {"text": jnp.array([[1.0, 0]]), "text_valid": jnp.array([True]), "tower_features": between}
        assert COMPRESSORS["mmtok"](tokens, keep=1, **told).indices.tolist() == [first]


def test_zoo_prune_by_hand():
    # The square's slope is 2 |x|: 2, 6, 4 and so 0, 1, 1/2. The opposite of the first choice is worth 0 * 2.
    features = {"key": KEY, "tower_features": jnp.array([[1.0], [3], [2]])}
    square = features | {"projector": jax.tree_util.Partial(jnp.square)}
    tokens = [[-1, 0], [2, 0], [0, 1]]
    assert [cut("zoo-prune", tokens, keep, **square) for keep in (1, 2)] == [[1], [1, 2]]
    # A linear projector is equally steep everywhere: distances decide alone.
    linear = features | {"projector": jax.tree_util.Partial(lambda rows: 2 * rows)}
    assert [cut("zoo-prune", at_angles(0, 10, 90), keep, **linear) for keep in (1, 2)] == [[0], [0, 2]]


def test_otprune_by_hand():
    # Columns at length 1 make both channels equal: S = [[1/2, 1/2, 0], [1/2, 1/2, 0], [0, 0, 1]], and S S^T the same.
    tokens = [[3, 0], [3, 0], [0, 0.1]]
    assert [cut("otprune", tokens, keep) for keep in (1, 2, 3)] == [[2], [0, 2], [0, 1, 2]]
    # A channel of zeros says nothing.
    assert cut("otprune", [[*row, 0] for row in tokens], 2) == [0, 2]
    with pytest.raises(ValueError, match=r"gamma must be above 0, got 0"):
        COMPRESSORS["otprune"].replace("none", gamma=0.0)(Tokens.of(jnp.eye(3)), keep=1)


def test_zoo_prune_derivative_agrees_with_the_difference():
    batch = images(*SHAPES[0])
    _, told = evidence("zoo-prune", batch)
    tokens = Tokens.of(batch["values"], valid=batch["valid"])
    exact = ZOO.replace("exact", step=0.0)(tokens, keep=9, **told)
    same = (exact.indices == ZOO(tokens, keep=9, **told).indices).all(-1)
    assert same.mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_broken_tokens_change_nothing(name):
    """As if they were not there: the others are chosen as in a set without them."""
    b, n, d, keep = 4, 37, 53, 9
    batch = {key: array.copy() for key, array in images(24, n, d, keep).items()}
    batch = {key: array[1:12:3][:b] for key, array in batch.items()}  # none broken
    batch["valid"][:] = True
    compressor, told = evidence(name, batch)
    clean = {key: np.where(np.isfinite(array), array, 0) for key, array in told.items() if key in batch}
    clean["valid"], clean["values"] = batch["valid"], np.where(np.isfinite(batch["values"]), batch["values"], 0)
    rest = {key: value for key, value in told.items() if key not in batch}

    # Three more tokens: a broken one in front, padding in the middle and at the end.
    places = [i for i in range(n + 3) if i not in (0, 20, n + 2)]
    wide = {}
    for key, array in clean.items():
        if key in ("text", "text_valid"):
            wide[key] = array
            continue
        wide[key] = np.full((b, n + 3, *array.shape[2:]), False if array.dtype == bool else np.nan, array.dtype)
        wide[key][:, places] = array
    wide["valid"][:, 0] = True

    def run(made):
        told = {key: array for key, array in made.items() if key not in ("values", "valid")}
        return compressor(Tokens.of(made["values"], valid=made["valid"]), keep=keep, **told, **rest).indices

    np.testing.assert_array_equal(np.asarray(run(wide)), np.array(places)[np.asarray(run(clean))])


@pytest.mark.parametrize("name", NAMES)
def test_broken_tokens_are_taken_last_and_padding_after_them(name):
    batch = {key: array[:1].copy() for key, array in images(*SHAPES[1]).items()}
    batch["valid"][0] = np.arange(24) % 2 == 1
    for key in ("values", "tower_features", "class_attention", "relevance"):
        batch[key] = np.where(np.isfinite(batch[key]), batch[key], 0)
    batch["values"][0, 7] = np.nan
    compressor, told = evidence(name, batch)
    tokens = Tokens.of(batch["values"], valid=batch["valid"])
    odd = list(range(1, 24, 2))
    assert compressor(tokens, keep=11, **told).indices[0].tolist() == [i for i in odd if i != 7]
    assert compressor(tokens, keep=14, **told).indices[0].tolist() == sorted([*odd, 0, 2])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "otprune"])  # whose identity lets copies stand
def test_of_copies_one_is_taken(name):
    """Whichever, as rounding has it, also at a width where products are added up in blocks."""
    rng = np.random.default_rng(4)
    half = {"values": (1, 20, 300), "tower_features": (1, 20, WIDTH), "class_attention": (1, 20), "relevance": (1, 20)}
    batch = {key: np.tile(rng.uniform(0.1, 1, shape), (1, 2, *[1] * (len(shape) - 2))) for key, shape in half.items()}
    batch |= {"text": rng.normal(size=(1, 3, 300)), "text_valid": np.ones((1, 3), bool)}
    batch = {key: array if array.dtype == bool else array.astype(np.float32) for key, array in batch.items()}
    compressor, told = evidence(name, batch)
    indices = np.asarray(compressor(Tokens.of(batch["values"]), keep=12, **told).indices[0])
    assert len(set(indices % 20)) == 12


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_widened_before_anything_else(name):
    batch = images(*SHAPES[0])
    compressor, told = evidence(name, batch)
    batch["values"] = np.asarray(jnp.asarray(batch["values"], jnp.bfloat16).astype(jnp.float32))
    wide = compressor(Tokens.of(batch["values"], valid=batch["valid"]), keep=9, **told)
    half = compressor(Tokens.of(jnp.asarray(batch["values"], jnp.bfloat16), valid=batch["valid"]), keep=9, **told)
    np.testing.assert_array_equal(half.indices, wide.indices)
