"""TRIM (arXiv 2409.10994): tokens that CLIP finds like the question, and the mean of all others."""

import jax
import jax.numpy as jnp

from tokencarve_jax.scores.ranking import USABLE, best_first, invert, tiers
from tokencarve_jax.tokens import Selection, Tokens, rows, rows_of


def trim(tokens: Tokens, *, keep: int, relevance_dot: jax.Array) -> Selection:
    """The K - 1 tokens that are most relevant to the question stand, and all others become one row, their mean.

    The row of the others stands where the last of them stood. With K = 1 it is all there is.

    Officially the count follows from each image: as many as have a softmax of the scores above Q3 + 1.5 IQR. This is
    the form for a fixed count, as in others' tables: 192, 128 and 64 of LLaVA-1.5's 576.

    Args:
        tokens: N of them, values [..., N, D].
        keep: K, the row for the others included.
        relevance_dot: [..., N], higher is more relevant: MINUS the dot product of
            visual_projection(post_layernorm(hidden[-2])) with the text's embedding by CLIP. The minus is the paper's.

    Returns:
        The selection. O(N log N + K N D).

    Source: TRIM (arXiv 2409.10994), as in its released code, with these deviations: the fixed count; there the mean is
    of the tower's features, here of the projector's output; there it is the last row, here rows stay in raster order;
    there the text is the whole prompt, cut to CLIP's context, here the question.
    """
    tier = tiers(tokens.valid, tokens.values, relevance_dot)
    usable = tier == USABLE
    order = best_first(jnp.where(usable, relevance_dot, 0), tier)
    others = usable & (invert(order) >= keep - 1)
    index = jnp.arange(tokens.shape[-1], dtype=jnp.int32)
    last = jnp.where(others.any(-1), jnp.where(others, index, -1).max(-1), order[..., keep - 1])[..., None]
    indices = jnp.sort(jnp.concatenate([order[..., : keep - 1], last], axis=-1), axis=-1)
    row = rows_of(indices, tokens.shape[-1])
    return Selection(indices, jnp.where(others, rows(row, last), row))
