"""DivPrune (arXiv 2503.02175): tokens that are as far from each other as can be."""

import jax.numpy as jnp

from tokencarve_jax.scores.greedy import distance, farthest
from tokencarve_jax.scores.ranking import USABLE, tiers
from tokencarve_jax.tokens import Selection, Tokens


def divprune(tokens: Tokens, *, keep: int) -> Selection:
    """Greedy max-min diversity under 1 - cosine of the projected tokens; nothing but the tokens is needed.

    The first token is the one whose nearest other token is farthest; each further one is farthest from its nearest
    among the taken.

    Paper: DivPrune, arXiv 2503.02175. Official settings: no constants. Its K is round(rho N), rho = 0.098 by default
    for LLaVA-1.5 (56 of 576); others report it at 192, 128 and 64 of 576 and at 640, 320 and 160 of 2,880
    (LLaVA-NeXT), as fractions of all crops together.

    Shapes: values [..., N, D] -> indices [..., K]. Cost: O(N^2 D) for the distances, O(K N) for the loop.

    Deviations: a token is never taken twice (the original can, among copies); a token of zeros is at distance 1 from
    all (the original divides by zero).
    """
    tier = tiers(tokens.valid, tokens.values)
    usable = tier == USABLE
    apart = distance(tokens.values, usable)
    count = apart.shape[-1]
    others = usable[..., None, :] & ~jnp.eye(count, dtype=bool)
    nearest = jnp.where(others, apart, jnp.inf).min(-1)
    return Selection(farthest(tier, keep, apart, first=nearest))
