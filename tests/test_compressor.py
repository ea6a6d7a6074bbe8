"""What a `Compressor` refuses when it is made, its variants, and that it is a static argument."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokencarve_jax import COMPRESSORS, Compressor, Selection, Tokens


def first(tokens, *, keep, step=1, query_attention=None):
    return Selection(jnp.broadcast_to(jnp.arange(keep, dtype=jnp.int32) * step, (*tokens.shape[:-1], keep)))


def test_it_refuses_what_could_not_run():
    with pytest.raises(ValueError, match="compressor 'first': at must be one of tower, input, decoder, got 'attic'"):
        Compressor("first", first, at="attic")
    with pytest.raises(ValueError, match="compressor 'first' has no option 'stride'; it has step"):
        Compressor("first", first, options=(("stride", 2),))
    with pytest.raises(ValueError, match="has no option 'query_attention'"):
        Compressor("first", first, options=(("query_attention", 2),))
    with pytest.raises(TypeError, match="unhashable"):
        Compressor("first", first, options=(("step", [2]),))
    with pytest.raises(TypeError, match=r"its parameter 'mood' is neither evidence .*query_attention.* nor an option"):
        Compressor("moody", lambda tokens, *, keep, mood: first(tokens, keep=keep))


def test_what_it_declares_is_read_off_the_signature():
    row = Compressor("first", first)
    assert (row.evidence, row.required) == (("query_attention",), ())
    assert COMPRESSORS["sparsevlm"].required == ("text_attention", "text", "text_valid")
    tokens = Tokens.of(np.ones((5, 1), np.float32))
    assert row(tokens, keep=2).indices.tolist() == row(tokens, keep=2, query_attention=None).indices.tolist() == [0, 1]


def test_replace_changes_options_and_the_name_and_nothing_else():
    row = Compressor("first", first, at="input", paper="a paper", calibrated=True)
    other = row.replace("second", step=2)
    assert (other.name, other.at, other.paper, other.calibrated) == ("second", "input", "a paper", True)
    assert other.options == (("step", 2),)
    assert other.replace("third").options == (("step", 2),)
    assert other(Tokens.of(np.ones((5, 1), np.float32)), keep=2).indices.tolist() == [0, 2]
    with pytest.raises(ValueError, match="has no option 'stride'"):
        row.replace("second", stride=2)


def test_it_is_a_static_argument():
    traces = []

    @functools.partial(jax.jit, static_argnames="compressor")
    def shrink(tokens, *, compressor):
        traces.append(compressor.name)
        return compressor(tokens, keep=2).indices

    tokens = Tokens.of(np.ones((5, 1), np.float32))
    for _ in range(2):
        for step in (1, 2):
            shrink(tokens, compressor=Compressor("first", first).replace(f"by {step}", step=step))
    assert traces == ["by 1", "by 2"]
    assert len({hash(row) for row in COMPRESSORS.values()}) == len(COMPRESSORS)


def test_words_are_as_many_everywhere():
    tokens = Tokens.of(np.ones((5, 4), np.float32))
    told = {"text_attention": np.ones((3, 5)), "text": np.ones((3, 4)), "text_valid": np.ones(3, bool)}
    with pytest.raises(ValueError, match=r"sparsevlm: text_valid must be \[3\], got \[2\]"):
        COMPRESSORS["sparsevlm"](tokens, keep=2, **{**told, "text_valid": np.ones(2, bool)})
    with pytest.raises(ValueError, match=r"sparsevlm: text must be \[3, 4\], got \[3, 7\]"):
        COMPRESSORS["sparsevlm"](tokens, keep=2, **{**told, "text": np.ones((3, 7))})
    as_numbers = COMPRESSORS["sparsevlm"](tokens, keep=2, **{**told, "text_valid": [1, 0, 1]})
    np.testing.assert_array_equal(as_numbers.indices, [0, 1])
