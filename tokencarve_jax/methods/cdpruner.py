"""CDPruner (arXiv 2506.10967): a determinantal point process over tokens, conditioned on the question."""

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.greedy import determinantal, similarity
from tokencarve_jax.scores.ranking import USABLE, tiers
from tokencarve_jax.tokens import Selection, Tokens


def cdpruner(tokens: Tokens, *, keep: int, relevance: jax.Array | None = None) -> Selection:
    """Greedy MAP inference of a DPP with kernel r_i cos_ij r_j: tokens that are relevant and unlike each other.

    Each step takes the token whose part orthogonal to the taken ones is largest (fast greedy MAP: the rows of an
    incremental Cholesky factor). r is the relevance, brought to [0, 1] by minimum and maximum over the image's usable
    tokens: (relevance - min + 1e-6) / (max - min). Without relevance r = 1, the plain DPP.

    Sign: `relevance` is used as it comes, higher is more relevant, and more likely kept. The official number is MINUS
    the mean over the texts of cos(visual_projection(post_layernorm(hidden[-2])), text embedding) of CLIP; whoever
    wants the official method hands over that number with its minus, and no sign is changed here.

    Paper: CDPruner, arXiv 2506.10967. Official settings: no constants; 128, 64 and 32 of 576 on LLaVA-1.5, and on
    LLaVA-NeXT the same in each of 5 crops (640, 320 and 160 of 2,880), 192 of 576 in others' tables.

    Shapes: values [..., N, D], relevance [..., N] -> indices [..., K]. Cost: O(N^2 D) for the kernel, O(K^2 N) for the
    loop, whose state is [K, N].

    Deviations: minimum and maximum are each image's (the original's are the whole batch's); equal relevance everywhere
    counts as none (the original divides by zero). A token whose remainder is within rounding of zero (8 epsilon of its
    own diagonal) counts as zero, so that tokens in the span of the taken ones follow by their index (the original takes
    a root of rounding errors). A token of zeros has remainder 0 from the start.
    """
    scores = () if relevance is None else (relevance,)
    tier = tiers(tokens.valid, tokens.values, *scores)
    usable = tier == USABLE
    kernel = similarity(tokens.values, usable)
    if relevance is not None:
        scale = _spread(lax.stop_gradient(relevance).astype(kernel.dtype), usable)
        kernel = scale[..., :, None] * kernel * scale[..., None, :]
    return Selection(determinantal(tier, keep, kernel))


def _spread(relevance: jax.Array, usable: jax.Array) -> jax.Array:
    """[..., N] to [0, 1] by minimum and maximum of the usable ones; 1 where those are equal, and 0 where not usable."""
    low = jnp.where(usable, relevance, jnp.inf).min(-1, keepdims=True)
    high = jnp.where(usable, relevance, -jnp.inf).max(-1, keepdims=True)
    spread = (jnp.where(usable, relevance, low) - low + 1e-6) / jnp.where(high > low, high - low, 1)
    return jnp.where(usable, jnp.where(high > low, spread, 1), 0)
