"""V2Drop (arXiv 2509.01552): the tokens that the layer before the cut changes most."""

import jax
import jax.numpy as jnp

from tokencarve_jax.methods.controls import length
from tokencarve_jax.scores.ranking import best, tiers
from tokencarve_jax.tokens import Selection, Tokens


def v2drop(tokens: Tokens, *, keep: int, previous_hidden: jax.Array) -> Selection:
    """The K tokens whose hidden state lies farthest, in L2 norm, from what entered the layer before, O(N D + N log N).

    Official settings, LLaVA-1.5: cuts at the entry of layers 3, 17 and 22, which leave 288, 144 and 1 of 576 (half,
    half, and none but for the last), with original positions.

    Args:
        tokens: N of them, values [..., N, D], the output of the layer before the cut.
        keep: K.
        previous_hidden: [..., N, D], the input of that layer.

    Returns:
        The selection; nothing is merged.

    Source: V2Drop (arXiv 2509.01552), as in its released code. Deviations: one cut is one call, and a schedule of cuts
    is the caller's; the original ranks a whole batch by its first image.
    """
    wide = jnp.promote_types(tokens.values.dtype, jnp.float32)
    # Halves, whose difference cannot overflow
    change = length(0.5 * tokens.values.astype(wide) - 0.5 * previous_hidden.astype(wide))
    return Selection(best(change, keep, tiers(tokens.valid, tokens.values, previous_hidden)))
