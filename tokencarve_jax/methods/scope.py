"""SCOPE (arXiv 2510.24214): tokens that stand for many others, weighted by the tower's attention."""

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.greedy import covering, similarity
from tokencarve_jax.scores.ranking import USABLE, tiers
from tokencarve_jax.tokens import Selection, Tokens


def scope(
    tokens: Tokens, *, keep: int, class_attention: jax.Array, tower_features: jax.Array, alpha: float = 1.0
) -> Selection:
    """Greedy coverage of all tokens by the kept ones, each gain times the class attention to the power `alpha`.

    A token is covered as well as its cosine similarity (of the tower's features) to the most similar kept one, and at
    least by 0; a step takes the token with the largest gain_v * a_v^alpha, gain_v = sum_u max(0, cos_uv - covered_u).
    Nothing is merged.

    Paper: SCOPE, arXiv 2510.24214. Official settings: alpha = 1 at every budget, attention and features of the
    penultimate layer; 192, 128 and 64 of 576 on LLaVA-1.5, 640, 320 and 160 of 2,880 on LLaVA-NeXT, shared equally by
    the crops; positions are renumbered.

    Shapes: class_attention [..., N], tower_features [..., N, C] -> indices [..., K]. Cost: O(N^2 C) for the
    similarities, O(K N^2) for the loop.

    Deviations: a token whose features are zeros covers nothing (the original divides by zero). The attention is the
    mean over heads and not their sum, which changes no choice.
    """
    attention = lax.stop_gradient(class_attention).astype(jnp.promote_types(class_attention.dtype, jnp.float32))
    tier = tiers(tokens.valid, tokens.values, tower_features, attention)
    usable = tier == USABLE
    kernel = similarity(tower_features, usable)
    weight = jnp.where(usable, attention, 0).astype(kernel.dtype) ** alpha
    return Selection(covering(tier, keep, kernel, weight=weight))
