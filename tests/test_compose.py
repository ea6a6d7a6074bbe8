"""`compress_sequence`: any method between two layers, and a decoder that goes on as if it had been masked."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokencarve_jax as tc
from tests.test_carve_sequence import IMAGES, sequence
from tokencarve_jax.samples import make_evidence

B, S, N, D, H, DEPTH, CUT, NEW = 3, 24, 12, 32, 4, 4, 2, 8
# Text, image, text; the visual tokens of the rows are 12, 9 and 7, at different places.
TEXT, IMAGE = np.array([[3, 5], [4, 5], [2, 4]]), np.array([12, 9, 7])
RNG = np.random.default_rng(0)
WEIGHTS = [{name: RNG.normal(size=(D, D)).astype(np.float32) / D**0.5 for name in "qkvo"} for _ in range(DEPTH)]
METHODS = ("tokencarve", "fastv", "pyramiddrop", "divprune")
PAGE = (Path(__file__).parents[1] / "docs" / "compose.md").read_text()
PROGRAMS = dict(re.findall(r"```python program=(\w+)\n(.*?)```", PAGE, re.DOTALL))  # run by test_public_models.py


def heads(x, weights, positions):
    """Query, key and value [B, S, H, d], the first two rotated."""
    q, k, v = (jnp.reshape(x @ weights[name], (*x.shape[:-1], H, -1)) for name in "qkv")
    angle = positions[..., None, None] / 100 ** jnp.linspace(0, 1, q.shape[-1] // 2)

    def turn(x):
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)

    return turn(q), turn(k), v


def layer(x, weights, q, k, v, mask):
    return x + jnp.reshape(jax.nn.dot_product_attention(q, k, v, mask=mask[:, None]), x.shape) @ weights["o"]


def prompt(side):
    """Which slots hold image and text, the positions of all, and the states [B, S, D]."""
    visual, real = np.zeros((B, S), bool), np.zeros((B, S), bool)
    for row, ((before, behind), image) in enumerate(zip(TEXT, IMAGE, strict=True)):
        length = before + image + behind
        start = S - length if side == "left" else 0
        real[row, start : start + length] = True
        visual[row, start + before : start + before + image] = True
    positions = np.maximum(real.cumsum(-1) - 1, 0)
    return visual, real, positions, np.random.default_rng(1).normal(size=(B, S, D)).astype(np.float32)


def prefill_and_decode(method, keep, side, new):
    """States of the last token and of the new ones [B, 1 + NEW, D], by caches that the cut shortens."""
    visual, real, positions, x = prompt(side)
    query, last, caches, mask = None, np.argmax(np.arange(S) * real, -1), [], jnp.tri(S, dtype=bool) & real[:, None]
    at_last = lambda array, last: jnp.take_along_axis(array, last.reshape(B, *[1] * (array.ndim - 1)), 1)[:, 0]  # noqa: E731
    for index, weights in enumerate(WEIGHTS):
        q, k, v = heads(x, weights, positions)
        if index == CUT:
            cut = tc.compress_sequence(
                x,
                tc.visual_positions(visual, count=N, mask=real),
                method,
                keep=keep,
                query_attention=tc.last_query_attention(at_last(query, last), caches[-1][0], mask=real),
                next_attention=tc.last_query_attention(at_last(q, last), k, mask=real),
            )
            caches = cut.shorten(caches, axis=1, room=NEW)
            x, (positions, real) = cut.hidden, cut.take((positions, real), axis=1)
            last, mask = jnp.argmax(jnp.arange(x.shape[1]) * real, -1), jnp.tri(x.shape[1], dtype=bool) & real[:, None]
            q, k, v = heads(x, weights, positions)
        query, x = q, layer(x, weights, q, k, v, mask)
        room = [(0, 0), (0, NEW if index >= CUT else 0), (0, 0), (0, 0)]
        caches.append((jnp.pad(k, room), jnp.pad(v, room)))
    states, length = [at_last(x, last)], x.shape[1]
    next_position = np.asarray(prompt(side)[1].sum(-1))
    for step in range(NEW):
        x, where = new[:, step : step + 1], next_position[:, None] + step
        seen = jnp.concatenate([real, jnp.broadcast_to(jnp.arange(NEW) <= step, (B, NEW))], 1)[:, None]
        for index, weights in enumerate(WEIGHTS):
            q, k, v = heads(x, weights, where)
            caches[index] = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, add, length + step, 1)
                for old, add in zip(caches[index], (k, v), strict=True)
            )
            x = layer(x, weights, q, *caches[index], seen)
        states.append(x[:, 0])
    return np.stack(states, 1), cut


def masked(cut, side, new):
    """The same by one forward over all positions, a row at a time in NumPy and float64, nothing cached or gathered."""
    _, real, positions, x = prompt(side)
    out = []
    for row in range(B):
        places = np.concatenate([positions[row], real[row].sum() + np.arange(NEW)])
        state = np.concatenate([x[row], new[row]]).astype(np.float64)
        real_row = np.concatenate([real[row], np.ones(NEW, bool)])
        stands = np.zeros(S + NEW, bool)
        stands[np.asarray(cut.kept[row])] = True
        stands[S:] = True
        causal = np.tri(S + NEW, dtype=bool)
        for index, weights in enumerate(WEIGHTS):
            if index == CUT:
                state[np.asarray(cut.kept[row])] = np.asarray(cut.hidden[row])  # a merged row is a new state
            # Before the cut, the prompt sees all of itself, and what is new only what the cut will leave.
            seen = causal & real_row
            seen[S if index < CUT else 0 :] &= stands
            state = state + attend(state, weights, places, seen)
        last = np.flatnonzero(real[row])[-1]
        out.append(state[[last, *range(S, S + NEW)]])
    return np.stack(out)


def attend(x, weights, places, seen):
    q, k, v = ((x @ weights[name].astype(np.float64)).reshape(len(x), H, -1) for name in "qkv")
    angle = places[:, None, None] / 100 ** np.linspace(0, 1, q.shape[-1] // 2)

    def turn(x):
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    logits = np.einsum("shd,thd->hst", turn(q), turn(k)) / q.shape[-1] ** 0.5
    logits = np.where(seen, logits, -1e30)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return np.einsum("hst,thd->shd", share, v).reshape(x.shape) @ weights["o"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep", [0.25, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_prefill_and_decoding_equal_a_masked_forward(method, keep, side):
    new = np.random.default_rng(2).normal(size=(B, NEW, D)).astype(np.float32)
    states, cut = prefill_and_decode(method, keep, side, new)
    visual, real, *_ = prompt(side)
    np.testing.assert_allclose(states, masked(cut, side, new), rtol=0, atol=1e-5)
    kept = np.asarray(cut.kept)
    for row in range(B):  # all text stands, and no more of the image than was asked for
        assert set(np.flatnonzero(real[row] & ~visual[row])) <= set(kept[row])
        assert np.isin(kept[row], np.flatnonzero(visual[row])).sum() == min(cut.indices.shape[1], visual[row].sum())
    assert cut.hidden.shape == (B, S - N + (3 if keep == 0.25 else N), D)


def evidence_of(names, leading, n):
    told = make_evidence(np.random.default_rng(3), names, leading, n=n, sizes=dict.fromkeys("HTdFCD", 16))
    return {name: value for name, value in told.items() if name != "projector"}


@pytest.mark.parametrize("name", [name for name in tc.COMPRESSORS if "projector" not in tc.COMPRESSORS[name].required])
def test_any_name_takes_evidence_as_long_as_the_sequence_or_as_the_image(name):
    """And gives what the compressor leaves of each image by itself; what the method does not ask for is ignored."""
    hidden, _ = sequence(2, 34)
    compressor = tc.COMPRESSORS[name]
    told = evidence_of(tc.EVIDENCE, (2,), 34)
    keep = 7 if compressor.at == "tower" else 5
    cut = jax.jit(lambda *told: tc.compress_sequence(hidden, IMAGES, name, keep=keep, **told[0]))(told)
    axis = {kind: 1 + letters.index("N") for kind, letters in tc.EVIDENCE.items() if "N" in letters}

    def of_image(kind, image):
        value = told[kind]
        if kind in axis:
            return np.stack([np.take(value[row], IMAGES[row, image], axis[kind] - 1) for row in range(2)])
        return value

    for image in range(2 if not compressor.evidence or "key" not in compressor.evidence else 0):
        rows = np.take_along_axis(hidden, IMAGES[:, image, :, None], 1)
        asked = {kind: of_image(kind, image) for kind in compressor.evidence if kind in told}
        left = compressor(tc.Tokens.of(rows, positions=IMAGES[:, image]), keep=keep, **asked)
        np.testing.assert_array_equal(cut.assignment[:, image], left.assignment)
        where = np.take_along_axis(IMAGES[:, image], np.asarray(left.indices), -1)
        for row in range(2):
            found = np.asarray(cut.hidden[row])[np.isin(cut.kept[row], where[row])]
            np.testing.assert_allclose(found, left.tokens.values[row], rtol=1e-5, atol=1e-6)
    short = {
        kind: np.stack([of_image(kind, image) for image in range(2)], 1) if kind in axis else value
        for kind, value in told.items()
    }
    again = jax.jit(lambda *told: tc.compress_sequence(hidden, IMAGES, name, keep=keep, **told[0]))(short)
    jax.tree.map(np.testing.assert_array_equal, cut, again)


def test_positions_as_they_come_and_shared_by_all_rows():
    hidden, attention = sequence(2, 34)
    pair = tc.visual_positions(np.arange(34) < 20, count=24)
    expected = tc.compress_sequence(
        hidden, np.stack([pair[0]] * 2), "fastv", keep=5, valid=np.stack([pair[1]] * 2), query_attention=attention
    )
    for positions in (pair, tuple(pair), jax.tree.map(lambda part: jnp.stack([part] * 2), pair)):
        for cut in (
            tc.compress_sequence(hidden, positions, tc.COMPRESSORS["fastv"], keep=5, query_attention=attention),
            tc.carve_sequence(hidden, attention, positions, keep=5, attention_weight=1.0, oversample=1.0),
        ):
            jax.tree.map(np.testing.assert_array_equal, cut, expected)
    alone = tc.compress_sequence(hidden[0], pair, "fastv", keep=5, query_attention=attention[0])
    np.testing.assert_array_equal(alone.kept, expected.kept[0])


def test_carve_sequence_is_tokencarve():
    hidden, attention = sequence(2, 34)
    jax.tree.map(
        np.testing.assert_array_equal,
        tc.carve_sequence(hidden, attention, IMAGES, keep=5),
        tc.compress_sequence(hidden, IMAGES, "tokencarve", keep=5, query_attention=attention),
    )


def test_mistakes_are_named():
    hidden, attention = sequence(2, 34)
    for method, told, error, says in (
        ("fastv", {}, TypeError, r"^fastv needs query_attention \[..., N\], and got none$"),
        ("FastV", {}, KeyError, "no method is named 'FastV', perhaps 'fastv'; there are apet, .*fastv"),
        (len, {}, TypeError, "method must be a name in COMPRESSORS or a Compressor"),
        ("divprune", {"query_atention": attention}, TypeError, "there is no evidence 'query_atention'"),
        (
            "fastv",
            {"query_attention": attention[:, :8]},
            ValueError,
            r"must be \(2, 34\), .* \(2, 2, 12\), .*head first",
        ),
        (
            "visionzip",
            {"class_attention": attention, "tower_keys": attention},
            ValueError,
            r"tower_keys must be \(2, 34, d",
        ),
    ):
        with pytest.raises(error, match=says):
            tc.compress_sequence(hidden, IMAGES, method, keep=5, **told)
    assert tc.COMPRESSORS.get("FastV") is None
    assert "FastV" not in tc.COMPRESSORS
    with pytest.raises(
        TypeError, match=r"^carve takes an array \[..., N, D\], got Tokens: pass tokens.values .{0,120}$"
    ):
        tc.carve(tc.Tokens.of(hidden), attention, keep=5)


def test_take_and_shorten_take_trees_and_positions_of_all_rows():
    hidden, attention = sequence(2, 34)
    cut = tc.compress_sequence(hidden, IMAGES, "fastv", keep=5, query_attention=attention)
    tree = {"hidden": hidden, "positions": jnp.arange(34), "mask": (attention > 0,)}
    taken = cut.take(tree, axis=1)
    np.testing.assert_array_equal(taken["positions"], cut.kept)
    np.testing.assert_array_equal(taken["hidden"], cut.hidden)
    np.testing.assert_array_equal(cut.shorten(tree, axis=1, room=2)["positions"], np.pad(cut.kept, [(0, 0), (0, 2)]))
    with pytest.raises(ValueError, match=r"^tree\['b'\]: axis 1 must be the uncut sequence"):
        cut.take({"a": hidden, "b": hidden[:, :-1]}, axis=1)


@pytest.mark.parametrize("name", ["nnx", "linen", "scanned", "plain_jax", "sliding_window"])
def test_a_cut_is_at_most_ten_lines_in_any_kind_of_model(name):
    """What it adds is marked, in programs of the page and in files with doctests; no other line is its."""
    text = PROGRAMS.get(name) or (Path(__file__).parent / "examples" / f"{name}.py").read_text()
    assert 5 <= text.count("# cut\n") <= 10
    prefill = re.search(r"def prefill\(.*?\n(\.\.\.)?     *return ", text, re.DOTALL)
    for line in prefill[0].splitlines():
        assert len(line) <= 120
        assert line.endswith("# cut") or not re.search(r"\bcut\.|compress_|attention\(|capture_", line), line
