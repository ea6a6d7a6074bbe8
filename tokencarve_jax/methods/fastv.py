"""FastV (arXiv 2403.06764): the tokens that the last text token attends to."""

import jax

from tokencarve_jax.scores.ranking import best, tiers
from tokencarve_jax.tokens import Selection, Tokens


def fastv(tokens: Tokens, *, keep: int, query_attention: jax.Array) -> Selection:
    """The K tokens with the highest attention of the last query in the layer before, O(N log N).

    Officially at layer 2 (3 in later papers), half of the tokens, original positions; earlier layers keep their full
    cache.
    """
    return Selection(best(query_attention, keep, tiers(tokens.valid, query_attention, tokens.values)))
