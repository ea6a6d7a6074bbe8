"""TokenCarve (arXiv 2503.10501) under the contract: `carve` decides, and its rows are taken bit for bit."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tokencarve_jax.carve import carve, scores
from tokencarve_jax.scores.information import DEFAULT
from tokencarve_jax.scores.ranking import best_first, invert, rank_points
from tokencarve_jax.tokens import Selection, Tokens


def tokencarve(
    tokens: Tokens,
    *,
    keep: int,
    query_attention: jax.Array,
    attention_weight: float = 0.5,
    oversample: float = 1.5,
    information: str = DEFAULT,
    debias: bool = False,
) -> Selection:
    """`tokencarve_jax.carve` on the values, with its options and errors. O(N^2 D); routes but the default O(N^3)."""
    options = {
        "attention_weight": attention_weight,
        "oversample": oversample,
        "information": information,
        "debias": debias,
    }
    return _selected(tokens, query_attention, keep=keep, **options)


def of_attention_output(
    tokens: Tokens, *, keep: int, query_attention: jax.Array, attention_output: jax.Array
) -> Selection:
    """The information score of the attention output, as the paper's text has it, in place of the hidden state."""
    return _selected(tokens, query_attention, keep=keep, features=attention_output)


def _selected(tokens: Tokens, attention: jax.Array, **options: Any) -> Selection:
    carved = carve(tokens.values, attention, valid=tokens.valid, **options)
    return Selection(carved.indices, carved.assignment, values=carved.tokens)


class Ranks(NamedTuple):
    """Where each of N tokens stands in stage I, each [..., N] int32 and 1 for the best.

    Attributes:
        attention: by the last query's attention.
        information: by the information score.
        fused: by both, as stage I takes them.
    """

    attention: jax.Array
    information: jax.Array
    fused: jax.Array


def ranks(
    tokens: Tokens,
    *,
    query_attention: jax.Array,
    attention_output: jax.Array | None = None,
    **options: Any,
) -> Ranks:
    """Where each token stands, for a method that goes by stage I; the `options` are those of its compressor.

    Args:
        tokens: before the cut.
        query_attention: [..., N], as the method is told.
        attention_output: [..., N, F], what the information score is of in place of the hidden state.
        **options: `attention_weight`, `information` and `debias` of `tokencarve`; `oversample` changes no rank.

    Returns:
        The ranks. Ties go to the lower index.
    """
    parameters = inspect.signature(tokencarve).parameters
    chosen = {
        name: options.get(name, parameters[name].default) for name in ("attention_weight", "information", "debias")
    }
    found = scores(tokens.values, query_attention, attention_output, tokens.valid, **chosen)
    count = query_attention.shape[-1]
    by_attention, by_information = (rank_points(score, found.tier) for score in (found.attention, found.information))
    fused = invert(best_first(found.points)) + 1
    return Ranks(count + 1 - by_attention, count + 1 - by_information, fused.astype(jnp.int32))
