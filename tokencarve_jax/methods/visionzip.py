"""VisionZip (arXiv 2412.04467): the tokens that the class token attends to, and a sum-up of all others."""

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.ranking import USABLE, best_first, invert, tiers
from tokencarve_jax.scores.similarity import cosine
from tokencarve_jax.tokens import Selection, Tokens, headroom, rows, rows_of, within


def visionzip(
    tokens: Tokens, *, keep: int, class_attention: jax.Array, tower_keys: jax.Array, contextual: float = 10 / 64
) -> Selection:
    """Dominant tokens by class attention, and contextual ones, to which all others are added.

    K - C tokens with the highest class attention stand as they are. Of the M others, C stand too: those at a uniform
    stride of floor(M / C) in raster order. Every token that is left joins the one of these whose tower key is the most
    similar by cosine, and such a row becomes its token PLUS the mean of those that joined, weighted by their sizes.

    Officially 162 + 30, 108 + 20 and 54 + 10 of LLaVA-1.5's 576, the dominant ones with the class token among them, and
    the same for each of the five images of LLaVA-NeXT (640, 320 and 160 of 2,880: 128, 64 and 32 an image). The class
    token is not among our tokens: its place goes to one more dominant token, and C is floor(10 / 64 K).

    Args:
        tokens: N of them, values [..., N, D].
        keep: K.
        class_attention: [..., N], mean over heads (officially the sum, which ranks alike).
        tower_keys: [..., N, d], mean over heads, of the same layer.
        contextual: C as a share of K, rounded down; K below 7 leaves no contextual token by default.

    Returns:
        The selection, with values of its own. O(N log N + C N d + K N D).

    Raises:
        ValueError: `contextual` is not in [0, 1].

    Source: VisionZip (arXiv 2412.04467), as in its released code, with these deviations: it works on the tower's
    features, here the projector's output is summed; rows stand in raster order, there the contextual ones come last.
    """
    if not 0 <= contextual <= 1:
        raise ValueError(f"contextual must be a share in [0, 1], got {contextual}")
    count, targets = tokens.shape[-1], int(keep * contextual)
    index = lax.broadcasted_iota(jnp.int32, tokens.shape, len(tokens.shape) - 1)
    tier = tiers(tokens.valid, tokens.values, class_attention, tower_keys)
    usable = tier == USABLE
    dominant = invert(best_first(jnp.where(usable, class_attention, 0), tier)) < keep - targets
    if targets == 0:
        return Selection(_ascending(dominant, index, keep))

    # Raster order among the others; what is not usable comes behind, and stands only where there is nothing else.
    place = invert(best_first(jnp.zeros(tokens.shape), jnp.where(dominant, -1, tier)))
    others = (usable & ~dominant).sum(-1, keepdims=True)
    stride = jnp.maximum(1, others // targets)
    target = ~dominant & (place % stride == 0) & (place < stride * targets)
    stands = dominant | target
    joins = usable & ~stands
    indices, hosts = _ascending(stands, index, keep), _ascending(target, index, targets)
    row = rows_of(indices, count)

    keys = jnp.where(usable[..., None], tower_keys.astype(jnp.float32), 0)
    host = rows(hosts, cosine(keys, rows(keys, hosts)).argmax(-1))
    assignment = jnp.where(joins, rows(row, host), row)
    return Selection(indices, assignment, values=_with_means(tokens, indices, jnp.where(joins, assignment, -1)))


def _ascending(chosen: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """The indices of `count` chosen tokens, ascending."""
    return jnp.sort(jnp.where(chosen, index, chosen.shape[-1]), axis=-1)[..., :count]


def _with_means(tokens: Tokens, indices: jax.Array, joined: jax.Array) -> jax.Array:
    """Rows at `indices` plus the mean of those whose `joined` [..., N] they are; bit for bit where there is none."""
    values = tokens.values.astype(jnp.promote_types(tokens.values.dtype, jnp.float32))
    joins = joined[..., None, :] == jnp.arange(indices.shape[-1], dtype=jnp.int32)[:, None]
    weights = jnp.where(joins, tokens.sizes[..., None, :], 0)  # [..., K, N]
    total = weights.sum(-1, keepdims=True)
    finite = jnp.where((joined >= 0)[..., None], values, 0)
    scale = headroom(finite)
    sums = jnp.matmul(weights.astype(values.dtype), finite * scale, precision=lax.Precision.HIGHEST)
    mean = sums / jnp.where(total > 0, total, 1)
    plus = within((rows(values, indices) * scale + mean) / scale, tokens.values.dtype)
    return jnp.where(total > 0, plus, rows(tokens.values, indices))
