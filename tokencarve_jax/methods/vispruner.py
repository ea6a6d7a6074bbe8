"""VisPruner (arXiv 2412.01818v2): half of the tokens for their attention, half for being unlike each other."""

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.ranking import USABLE, best, best_first, invert, tiers
from tokencarve_jax.scores.similarity import cosine
from tokencarve_jax.tokens import Selection, Tokens, rows

_AT_A_TIME = 8


def vispruner(
    tokens: Tokens, *, keep: int, class_attention: jax.Array, tower_features: jax.Array, important: float = 0.5
) -> Selection:
    """Important tokens by class attention, then diverse ones: of the others, duplicates leave until K are left.

    The floor(K / 2) tokens with the highest class attention stand. The others line up by attention. In each round,
    those at even places of the line are compared with those at odd places, and the 8 of them that have the most similar
    partner by cosine of the features (fewer in the last round) leave; the rest of the even places goes to the front,
    the most similar first, and the odd places follow as they were.

    Officially half for attention at every budget: 192, 128 and 64 of LLaVA-1.5's 576, the same for each of the five
    images of LLaVA-NeXT (640, 320, 160 of 2,880).

    Args:
        tokens: N of them.
        keep: K.
        class_attention: [..., N], mean over heads.
        tower_features: [..., N, C], what goes into the projector.
        important: the share of K that attention decides, rounded down, in [0, 1].

    Returns:
        The selection, nothing merges. O(N^2 C + N^2 (N - K) / 8), the number of rounds follows from N and K.

    Raises:
        ValueError: `important` is not in [0, 1].

    Source: VisPruner (arXiv 2412.01818, version 2 and later), as in its released code. That fails where an odd
    number of tokens is in line or a round would empty the even places; here a round takes at most half of the line.
    Similarities that differ by rounding may stand in another order, and then all later rounds compare other tokens.
    """
    if not 0 <= important <= 1:
        raise ValueError(f"important must be a share in [0, 1], got {important}")
    first = int(keep * important)
    tier = tiers(tokens.valid, tokens.values, class_attention, tower_features)
    usable = tier == USABLE
    order = best_first(jnp.where(usable, class_attention, 0), tier)
    line = order[..., first:]
    wide = tower_features.astype(jnp.promote_types(tower_features.dtype, jnp.float32))
    features = jnp.where(usable[..., None], wide, 0)
    features = rows(features, line)
    live = jnp.maximum(usable.sum(-1, dtype=jnp.int32) - first, 0)

    def one(similarity: jax.Array, line: jax.Array, live: jax.Array) -> jax.Array:
        return _distinct(similarity, line, live, keep - first)

    diverse = jnp.vectorize(one, signature="(r,r),(r),()->(r)")(cosine(features, features), line, live)
    chosen = jnp.concatenate([jnp.ones((*tokens.shape[:-1], first), bool), diverse], axis=-1)
    chosen = usable & rows(chosen, invert(order))
    return Selection(best(jnp.zeros(tokens.shape), keep, jnp.where(chosen, USABLE + 1, tier)))


def _distinct(similarity: jax.Array, index: jax.Array, live: jax.Array, target: int) -> jax.Array:
    """Who is left of a line [R] when only `target` are, [R] bool; the first `live` of it count.

    `similarity` is [R, R], `index` breaks ties. A line of fewer than R has no more rounds than one of R.
    """
    size = index.shape[-1]
    place = jnp.arange(size)

    def one_round(_: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        line, live = state  # where each one stood at first, in the order in which they stand now
        leaving = jnp.clip(live - target, 0, jnp.minimum(_AT_A_TIME, live // 2))
        even, odd = (place < live) & (place % 2 == 0), (place < live) & (place % 2 == 1)
        partners = jnp.where(jnp.take(odd, invert(line)), similarity, -jnp.inf)
        closest = jnp.take(partners.max(-1), line)
        group = jnp.where(even, 0, jnp.where(odd, 1, 2))
        within = jnp.where(even, -closest, place)
        line = lax.sort((group, within, jnp.take(index, line), line), num_keys=3)[-1]
        return jnp.roll(line, -leaving), live - leaving

    start = (place.astype(jnp.int32), live)
    line, live = lax.fori_loop(0, _rounds(size, target), one_round, start)
    return jnp.take(place < live, invert(line))


def _rounds(size: int, target: int) -> int:
    """How many rounds it takes from `size` in line to `target`."""
    rounds = 0
    while (leaving := min(_AT_A_TIME, size - target, size // 2)) > 0:
        size, rounds = size - leaving, rounds + 1
    return rounds
