"""`check` finds each way to break the contract, and what `select` returns is checked while tracing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokencarve_jax import Compressor, Selection, Tokens, check
from tokencarve_jax.scores.ranking import USABLE, best, tiers


def fine(tokens, *, keep, query_attention):
    return Selection(best(query_attention, keep, tiers(tokens.valid, tokens.values, query_attention)))


def odd(tokens, *, keep, query_attention):
    """The README's method, with its tokens counted as the contract has it."""
    tier = tiers(tokens.valid, tokens.values, query_attention)
    centre = jnp.mean(tokens.values, -2, keepdims=True, where=(tier == USABLE)[..., None])
    return Selection(best(jnp.square(tokens.values - centre).sum(-1) * query_attention, keep, tier))


def pairs(tokens, *, keep, query_attention):
    """What is dropped joins the row before it."""
    left = fine(tokens, keep=keep, query_attention=query_attention)
    row = (left.indices[..., None, :] <= jnp.arange(tokens.shape[-1])[:, None]).sum(-1) - 1
    usable = tiers(tokens.valid, tokens.values, query_attention) == USABLE
    stands = (left.indices[..., None, :] == jnp.arange(tokens.shape[-1])[:, None]).any(-1)
    return Selection(left.indices, jnp.where(stands | usable, row, -1))


def top(score, keep):
    return Selection(jnp.sort(jnp.argsort(-score, axis=-1)[..., :keep], axis=-1).astype(jnp.int32))


def wrong_count(tokens, *, keep, query_attention):
    return fine(tokens, keep=min(2 * keep, tokens.shape[-1]), query_attention=query_attention)


def unsorted(tokens, *, keep, query_attention):
    return Selection(fine(tokens, keep=keep, query_attention=query_attention).indices[..., ::-1])


def duplicate(tokens, *, keep, query_attention):
    indices = fine(tokens, keep=keep, query_attention=query_attention).indices
    return Selection(jnp.sort(jnp.concatenate([indices[..., :1], indices[..., :-1]], axis=-1), axis=-1))


def out_of_range(tokens, *, keep, query_attention):
    return Selection(fine(tokens, keep=keep, query_attention=query_attention).indices + 7)


def negative(tokens, *, keep, query_attention):
    return Selection(fine(tokens, keep=keep, query_attention=query_attention).indices - tokens.shape[-1])


def floats(tokens, *, keep, query_attention):
    return Selection(fine(tokens, keep=keep, query_attention=query_attention).indices.astype(jnp.float32))


def nan_early(tokens, *, keep, query_attention):
    """By the largest value: NaN counts as the largest of all."""
    score = jnp.where(tokens.valid, jnp.abs(tokens.values).max(-1), -jnp.inf)
    return Selection(jnp.sort(jax.lax.top_k(score, keep)[1], axis=-1))


def nan_spreads(tokens, *, keep, query_attention):
    """The README's method, as it was: a NaN in one token is in the mean of all."""
    centre = jnp.mean(tokens.values, -2, keepdims=True, where=tokens.valid[..., None])
    distance = jnp.square(tokens.values - centre).sum(-1) * query_attention
    return Selection(best(distance, keep, tiers(tokens.valid, tokens.values, query_attention)))


def looks_at_padding(tokens, *, keep, query_attention):
    finite = jnp.where(jnp.isfinite(tokens.values), tokens.values, 0)
    distance = jnp.square(finite - finite.mean(-2, keepdims=True)).sum(-1)
    return Selection(best(distance, keep, tiers(tokens.valid, tokens.values, query_attention)))


def picks_padding(tokens, *, keep, query_attention):
    return Selection(best(query_attention, keep, tiers(jnp.ones_like(tokens.valid), tokens.values)))


def across_the_batch(tokens, *, keep, query_attention):
    tier = tiers(tokens.valid, tokens.values, query_attention)
    finite = jnp.where((tier == USABLE)[..., None], tokens.values, 0)
    centre = finite.mean(tuple(range(finite.ndim - 1)))
    return Selection(best(jnp.square(finite - centre).sum(-1), keep, tier))


def not_deterministic(tokens, *, keep, query_attention):
    score = query_attention + np.random.default_rng().random(tokens.shape[-1], dtype=np.float32)
    return Selection(best(score, keep, tiers(tokens.valid, tokens.values, query_attention)))


def draws_at_run_time(tokens, *, keep, query_attention):
    draw = lambda: np.random.default_rng().random(query_attention.shape, dtype=np.float32)  # noqa: E731
    noise = jax.pure_callback(draw, jax.ShapeDtypeStruct(query_attention.shape, jnp.float32), vmap_method="sequential")
    return Selection(best(query_attention + noise, keep, tiers(tokens.valid, tokens.values, query_attention)))


def not_under_jit(tokens, *, keep, query_attention):
    if query_attention.max() > 0.5:
        return fine(tokens, keep=keep, query_attention=-query_attention)
    return fine(tokens, keep=keep, query_attention=query_attention)


def numpy_inside(tokens, *, keep, query_attention):
    return top(np.asarray(query_attention), keep)


def not_all(tokens, *, keep, query_attention):
    jax.lax.top_k(query_attention, keep + 1)
    return fine(tokens, keep=keep, query_attention=query_attention)


def not_all_quietly(tokens, *, keep, query_attention):
    if keep == tokens.shape[-1]:
        return Selection(jnp.zeros(tokens.shape, jnp.int32))
    return fine(tokens, keep=keep, query_attention=query_attention)


def by_chance(tokens, *, keep, query_attention):
    noise = 1e-6 * jax.random.uniform(jax.random.key(0), query_attention.shape[-1:])
    return Selection(best(query_attention + noise, keep, tiers(tokens.valid, tokens.values, query_attention)))


def by_chance_of_each(tokens, *, keep, query_attention):
    noise = 1e-6 * jax.random.uniform(jax.random.key(0), query_attention.shape)
    return Selection(best(query_attention + noise, keep, tiers(tokens.valid, tokens.values, query_attention)))


def last_of_equals(tokens, *, keep, query_attention):
    tier = tiers(tokens.valid, tokens.values, query_attention)
    score = jnp.where(tier == USABLE, query_attention, tier - 9.0)
    return Selection(jnp.sort(jnp.argsort(score, axis=-1)[..., -keep:], axis=-1))


def noise_alone(tokens, *, keep):
    """Without evidence: values tie."""
    size = jnp.square(jnp.where(jnp.isfinite(tokens.values), tokens.values, 0)).sum(-1)
    noise = 1 + 1e-6 * jax.random.uniform(jax.random.key(0), tokens.shape[-1:])
    return Selection(best(size * noise, keep, tiers(tokens.valid, tokens.values)))


def joins_nobody(tokens, *, keep, query_attention):
    left = fine(tokens, keep=keep, query_attention=query_attention)
    return Selection(left.indices, jnp.full(tokens.shape, keep))


def rows_shifted(tokens, *, keep, query_attention):
    left = pairs(tokens, keep=keep, query_attention=query_attention)
    return Selection(left.indices, jnp.where(left.assignment < 0, -1, (left.assignment + 1) % keep))


def one_dimension(tokens, *, keep, query_attention):
    """Takes the two leading dimensions of a batch, but is wrong of one set alone."""
    score = query_attention if query_attention.ndim > 1 else -query_attention
    return fine(tokens, keep=keep, query_attention=score)


def words(tokens, *, keep, text, text_valid):
    likeness = (tokens.values @ text.mean(-2)[..., None])[..., 0]
    return Selection(best(likeness, keep, tiers(tokens.valid, tokens.values)))


def makes_nan(tokens, *, keep, query_attention):
    left = fine(tokens, keep=keep, query_attention=query_attention)
    rows = jnp.take_along_axis(tokens.values, left.indices[..., None], axis=-2)
    return Selection(left.indices, values=rows / jnp.minimum(rows, 0))


def raises(tokens, *, keep, query_attention):
    raise KeyError("no such\ntoken")


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (wrong_count, r"select must return indices of integers \[2, 3, 11\] for keep=11, got \[2, 3, 22\]"),
        (unsorted, "indices must be strictly ascending"),
        (duplicate, r"indices must be distinct, got \d+ twice"),
        (out_of_range, r"indices must be in 0..32 for 33 tokens, got \d+"),
        (negative, r"indices must be in 0..32 for 33 tokens, got -\d+"),
        (floats, r"select must return indices of integers \[2, 3, 11\], got float32"),
        (nan_early, r"picks a token with a NaN or an infinity \(token \d+\) ahead"),
        (nan_spreads, "a NaN or an infinity must count as padding"),
        (looks_at_padding, "padding must have no influence"),
        (picks_padding, r"picks padding \(token \d+\) ahead"),
        (across_the_batch, "must shrink each set of a batch by itself"),
        (not_deterministic, "must do the same each time"),
        (draws_at_run_time, "must do the same each time"),
        (not_under_jit, r"does not run under jax.jit: TracerBoolConversionError"),
        (numpy_inside, r"does not run under jax.jit: TracerArrayConversionError"),
        (not_all, r"fails at keep = N = 33 of 33 tokens: ValueError"),
        (not_all_quietly, "indices must be distinct"),
        (by_chance, "ties must go to the lower index, and of equal tokens it leaves"),
        (by_chance_of_each, "ties must go to the lower index, and of equal sets"),
        (last_of_equals, "ties must go to the lower index, and of equal tokens it leaves 32, not 0"),
        (noise_alone, "ties must go to the lower index, and of equal tokens it leaves"),
        (joins_nobody, "assignment must be a row in 0..10, or -1, got 11"),
        (rows_shifted, "assignment must give each token that stands its own row"),
        (one_dimension, "must leave the same of a set under vmap and in a batch"),
        (words, "words outside text_valid must have no influence"),
        (makes_nan, "rows of finite tokens must be finite"),
        (raises, "fails at keep = 11 of 33 tokens: KeyError: 'no such"),
    ],
)
def test_a_broken_method_is_told_what_is_broken(method, says):
    with pytest.raises((ValueError, TypeError), match=rf"^mine: {says}") as error:
        check(Compressor("mine", method))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [fine, odd, pairs])
def test_a_method_in_order_passes(method):
    check(Compressor("mine", method))
    check(Compressor("mine", functools.partial(method)), seed=1)


def test_it_takes_compressors_alone():
    with pytest.raises(TypeError, match=r"^check takes a Compressor, got function; .* makes one$"):
        check(fine)


TOKENS = Tokens.of(np.ones((2, 5, 3), np.float32))
GOOD = np.broadcast_to(np.arange(2, dtype=np.int32), (2, 2))


@pytest.mark.parametrize(
    ("returned", "error", "says"),
    [
        (GOOD, TypeError, "select must return a Selection, got ndarray; .*Selection.indices. makes one"),
        ((GOOD, None), TypeError, "select must return a Selection, got tuple"),
        (None, TypeError, "select must return a Selection, got NoneType"),
        (Selection(None), TypeError, r"select must return indices of integers \[2, 2\], got NoneType"),
        (Selection([[0, 1]] * 2), TypeError, r"indices of integers \[2, 2\], got list"),
        (Selection(GOOD > 0), TypeError, r"indices of integers \[2, 2\], got bool"),
        (Selection(GOOD[0]), ValueError, r"indices of integers \[2, 2\] for keep=2, got \[2\]"),
        (Selection(GOOD, GOOD), ValueError, r"assignment of integers \[2, 5\] for keep=2, got \[2, 2\]"),
        (Selection(GOOD, np.zeros((2, 5))), TypeError, r"assignment of integers \[2, 5\], got float64"),
        (Selection(GOOD, weights=np.ones((2, 2))), ValueError, r"weights \[2, 5\] for keep=2, got \[2, 2\]"),
        (Selection(GOOD, values=np.ones((2, 2))), ValueError, r"values \[2, 2, 3\] for keep=2, got \[2, 2\]"),
    ],
)
def test_what_select_returns_is_checked_while_tracing(returned, error, says):
    compressor = Compressor("mine", lambda tokens, *, keep: returned)
    with pytest.raises(error, match=rf"^mine: .*{says}"):
        jax.eval_shape(lambda tokens: compressor(tokens, keep=2), TOKENS)


def test_any_kind_of_integers_will_do():
    for kind in (np.uint8, np.int64, np.int16):
        compressor = Compressor("mine", lambda tokens, *, keep, kind=kind: Selection(GOOD.astype(kind)))
        assert compressor(TOKENS, keep=2).indices.dtype == jnp.int32
