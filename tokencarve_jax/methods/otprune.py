"""OTPrune (arXiv 2602.20205): tokens whose distribution is close to that of all, by optimal transport."""

import jax.numpy as jnp

from tokencarve_jax.scores.greedy import determinantal
from tokencarve_jax.scores.ranking import USABLE, tiers
from tokencarve_jax.scores.similarity import unit
from tokencarve_jax.scores.spectrum import gram_matrix
from tokencarve_jax.tokens import Selection, Tokens


def otprune(tokens: Tokens, *, keep: int, gamma: float = 0.01) -> Selection:
    """Greedily maximise log det(I + gamma S S^T) over the kept tokens, a bound for the 2-Wasserstein distance to all.

    S = V V^T, [N, N], where V are the projected tokens with every column, a channel over all tokens, at length 1. Each
    step takes the token that raises the determinant of its part of the kernel most.

    Official settings: gamma 0.01; K is round(rho N).

    Args:
        tokens: N of them, values [..., N, D].
        keep: K.
        gamma: the weight of S S^T against the identity, above 0.

    Returns:
        The selection; nothing is merged. O(N^2 D + N^3 + K^2 N).

    Raises:
        ValueError: `gamma` is not above 0.

    Source: OTPrune (arXiv 2602.20205), as in its released code (the projector's output, without the text). Deviations:
    a channel of zeros stays zero (the original divides by zero), and the kernel is float32 or wider.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    tier = tiers(tokens.valid, tokens.values)
    values = tokens.values.astype(jnp.promote_types(tokens.values.dtype, jnp.float32))
    channels = jnp.where((tier == USABLE)[..., None], values, 0)
    alike = gram_matrix(jnp.swapaxes(unit(jnp.swapaxes(channels, -1, -2)), -1, -2))
    kernel = jnp.eye(tier.shape[-1], dtype=alike.dtype) + gamma * gram_matrix(alike)
    return Selection(determinantal(tier, keep, kernel))
