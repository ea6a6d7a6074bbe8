"""DART (arXiv 2502.11494): what duplicates a few pivots goes, what resembles them least stays."""

import jax
import jax.numpy as jnp

from tokencarve_jax.scores.ranking import USABLE, best, best_first, invert, tiers
from tokencarve_jax.scores.similarity import cosine
from tokencarve_jax.tokens import Selection, Tokens, rows


def dart(
    tokens: Tokens,
    *,
    keep: int,
    keys: jax.Array,
    text_keys: jax.Array,
    text_hidden: jax.Array,
    text_valid: jax.Array,
    normed_hidden: jax.Array | None = None,
    image_pivots: int = 4,
    text_pivots: int = 4,
) -> Selection:
    """Pivots, and for each of them in turn the tokens least like it that nobody took yet; O(P (N D + N log N)).

    Pivots are the visual tokens and the words of the question with the longest keys, [..., N, d] and [..., T, d] by
    their L1 norm after rotary embedding; likeness is the cosine of hidden states, [..., N, D] and [..., T, D], as the
    decoder's last norm leaves them, or without `normed_hidden` of the tokens as they are. Visual pivots come first,
    each kind from the longest key down, and are kept themselves; a pivot takes (K - 4) / 8 tokens, the first ones one
    more where that leaves a rest. A question of fewer than 4 words has fewer pivots.

    Officially at layer 2, `floor(K / 8)` for each pivot and the visual pivots on top: 196/132/68 for budgets of
    192/128/64, and 644/324/164 for LLaVA-NeXT's 640/320/160; here K counts them all.

    Deviations: the code goes through the pivots in the order of a Python set, which follows from the remainders of
    their places in the sequence.
    """
    states = tokens.values if normed_hidden is None else normed_hidden
    tier = tiers(tokens.valid, tokens.values, states, keys)
    usable = tier == USABLE
    words = text_valid & jnp.isfinite(text_keys).all(-1) & jnp.isfinite(text_hidden).all(-1)
    chosen = best_first(_length(keys, usable), tier)[..., : min(image_pivots, keep)]
    asked = best_first(_length(text_keys, words), words.astype(jnp.int32))[..., :text_pivots]
    active = jnp.concatenate([rows(usable, chosen), rows(words, asked)], axis=-1)
    hidden, text = _cleared(states, usable), _cleared(text_hidden, words)
    pivots = jnp.concatenate([rows(hidden, chosen), rows(text, asked)], axis=-2)
    likeness = cosine(pivots, hidden)  # [..., P, N]

    turn, count = jnp.cumsum(active, axis=-1) - 1, jnp.maximum(active.sum(-1, keepdims=True), 1)
    rest = keep - chosen.shape[-1]
    quota = jnp.where(active, rest // count + (turn < rest % count), 0)  # [..., P]
    taken = usable & (chosen[..., None] == jnp.arange(tokens.shape[-1])).any(-2)
    for pivot in range(active.shape[-1]):
        free = usable & ~taken
        place = invert(best_first(-likeness[..., pivot, :], free.astype(jnp.int32)))
        taken |= free & (place < quota[..., pivot, None])
    return Selection(best(taken.astype(jnp.float32), keep, tier))


def _length(keys: jax.Array, counts: jax.Array) -> jax.Array:
    return jnp.abs(_cleared(keys, counts)).sum(-1)


def _cleared(array: jax.Array, counts: jax.Array) -> jax.Array:
    """Float32, and zero in rows that do not count."""
    return jnp.where(counts[..., None], array.astype(jnp.promote_types(array.dtype, jnp.float32)), 0)
