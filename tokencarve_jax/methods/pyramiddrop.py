"""PyramidDrop (arXiv 2410.17247): fewer tokens at each of several depths, by the attention of the layer to come."""

import jax

from tokencarve_jax.scores.ranking import best, tiers
from tokencarve_jax.tokens import Selection, Tokens


def pyramiddrop(tokens: Tokens, *, keep: int, next_attention: jax.Array) -> Selection:
    """One of its cuts: the K tokens with the highest attention [..., N] in the layer behind the cut; O(N log N).

    It is the softmax attention of the last instruction token, by that layer's own queries and keys, mean over heads.
    Officially after layers 8, 16 and 24 of 32, each cut keeps half of what is there (`floor(N / 2)`): 288, 144 and 72
    of LLaVA's 576, on average 270. Its authors publish no settings for 192/128/64 or for 640/320/160 of LLaVA-NeXT.
    That earlier layers keep what they cached, and that survivors are numbered anew, is for the schedule to say.
    """
    return Selection(best(next_attention, keep, tiers(tokens.valid, next_attention, tokens.values)))
