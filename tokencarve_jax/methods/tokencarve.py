"""TokenCarve (arXiv 2503.10501) under the contract: `carve` decides, and its rows are taken bit for bit."""

from typing import Any

import jax

from tokencarve_jax.carve import carve
from tokencarve_jax.tokens import Selection, Tokens


def tokencarve(
    tokens: Tokens,
    *,
    keep: int,
    query_attention: jax.Array,
    attention_weight: float = 0.5,
    oversample: float = 1.5,
    information: str = "gram",
    debias: bool = False,
) -> Selection:
    """`tokencarve_jax.carve` on the values, with its options and errors: an N x N eigenproblem, O(N^3 + N^2 D)."""
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
