"""FasterVLM (arXiv 2412.01818): the tokens that the class token attends to."""

import jax
import jax.numpy as jnp

from tokencarve_jax.scores.ranking import USABLE, best, tiers
from tokencarve_jax.tokens import Selection, Tokens


def fastervlm(tokens: Tokens, *, keep: int, class_attention: jax.Array) -> Selection:
    """The K tokens with the highest attention of the class token, in raster order; nothing merges.

    Officially on the layer that LLaVA takes its features from, any K of LLaVA-1.5's 576 (192, 128, 64 are used by later
    papers), and the same share of each of the five images of LLaVA-NeXT (640, 320, 160 of 2,880).

    Args:
        tokens: N of them.
        keep: K.
        class_attention: [..., N], mean over heads.

    Returns:
        The selection. O(N log N).

    Source: FasterVLM (arXiv 2412.01818), as in its released code, which prunes before the projector; each token is
    projected by itself, so the result is the same.
    """
    tier = tiers(tokens.valid, tokens.values, class_attention)
    return Selection(best(jnp.where(tier == USABLE, class_attention, 0), keep, tier))
