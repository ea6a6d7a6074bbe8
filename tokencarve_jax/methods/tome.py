"""Token merging (ToMe, arXiv 2210.09461): one step of bipartite soft matching, and how many such steps it takes."""

import operator

import jax
import jax.numpy as jnp

from tokencarve_jax.scores.ranking import USABLE, best_first, invert, tiers
from tokencarve_jax.scores.similarity import cosine
from tokencarve_jax.tokens import Selection, Tokens, rows, rows_of


def tome(tokens: Tokens, *, keep: int, tower_keys: jax.Array) -> Selection:
    """The N - K most similar pairs of tokens become their size-weighted means: one block of a vision tower.

    Tokens at even places are A, those at odd places B. Every token of A is paired with the token of B whose key is the
    most similar by cosine; the N - K closest pairs merge, where the token of B stands. All others stay as they are.
    A place is counted among the usable tokens, so padding and broken tokens do not change who is paired; they leave
    before any pair merges, and the number of merges is as much lower.

    Officially in every block between attention and MLP, the same number of merges in each (16 in CLIP's 24 blocks leave
    192 of LLaVA-1.5's 576, about 19 and 21 leave 128 and 64; LLaVA-NeXT: the same for each of five images);
    `block_counts` gives the counts. Attention in the blocks behind adds the logarithm of the sizes to the logits, which
    is up to the model that calls this.

    Args:
        tokens: N of them, without the class token, values [..., N, D].
        keep: K, at least N / 2.
        tower_keys: [..., N, d], mean over heads, of this block.

    Returns:
        The selection. O(N^2 d / 4 + K N D).

    Raises:
        ValueError: More than half of the tokens would have to merge.

    Source: the formulas of ToMe (arXiv 2210.09461). Its released code counts places from the class token, which never
    merges; there the first patch belongs to B, here to A.
    """
    count = tokens.shape[-1]
    merged = count - keep
    if merged > count // 2:
        raise ValueError(
            f"one step of tome merges at most half of the tokens: of {count} it leaves {count - count // 2} or more, "
            f"got keep={keep}; `block_counts` spreads a larger reduction over several steps"
        )
    if merged == 0:
        return Selection(jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), tokens.shape))
    tier = tiers(tokens.valid, tokens.values, tower_keys)
    # Usable ones in raster order, then the rest: from here on a place is an index, until it is sent back.
    at = best_first(jnp.zeros(tokens.shape), tier)
    tier = rows(tier, at)
    usable = tier == USABLE
    keys = jnp.where(usable[..., None], rows(tower_keys, at).astype(jnp.float32), 0)
    similarity = cosine(keys[..., ::2, :], keys[..., 1::2, :])
    similarity = jnp.where(usable[..., None, 1::2], similarity, -jnp.inf)
    partner = jnp.repeat(2 * similarity.argmax(-1) + 1, 2, axis=-1)[..., :count]
    closest = jnp.repeat(similarity.max(-1), 2, axis=-1)[..., :count]

    # What is not usable leaves first, the highest index first, and then the closest of A. B stays.
    place = jnp.arange(count)
    leaving = jnp.where(usable, jnp.where(place % 2 == 0, closest, -jnp.inf), place)
    order = best_first(leaving, -tier)
    indices = jnp.sort(rows(at, order[..., merged:]), axis=-1)
    row = rows_of(indices, count)  # by index again
    joins = usable & (invert(order) < merged)
    host = jnp.where(joins, rows(row, rows(at, partner)), -1)
    return Selection(indices, jnp.maximum(row, rows(host, invert(at))))


def block_counts(num_tokens: int, keep: int, blocks: int) -> tuple[int, ...]:
    """How many tokens each of several blocks leaves, so that the last one leaves `keep`.

    The reduction is spread evenly; where that would merge more than half of the tokens that a late block has left, the
    blocks before it merge more.

    Args:
        num_tokens: N, what the first block gets.
        keep: K, 1..N.
        blocks: how many blocks merge.

    Returns:
        One count a block, never rising, none below half of the one before.

    Raises:
        TypeError: A number is not an int.
        ValueError: A number is out of range, or halving in each block would not get there.

    Source: a constant number a block, never more than half, is ToMe's schedule (arXiv 2210.09461).

    Examples:
        >>> block_counts(576, 192, 24)[:3], block_counts(10, 4, 3), block_counts(16, 1, 4)
        ((560, 544, 528), (8, 6, 4), (8, 4, 2, 1))
    """
    num_tokens, keep, blocks = operator.index(num_tokens), operator.index(keep), operator.index(blocks)
    if not 1 <= keep <= num_tokens:
        raise ValueError(f"keep must be in 1..{num_tokens}, got {keep}")
    if blocks < 1:
        raise ValueError(f"blocks must be 1 or more, got {blocks}")
    if num_tokens > keep << blocks:
        least = -(-num_tokens >> blocks)
        raise ValueError(
            f"{blocks} blocks that merge at most half each leave {least} or more of {num_tokens}, got keep={keep}"
        )
    even = (num_tokens - (num_tokens - keep) * block // blocks for block in range(1, blocks + 1))
    return tuple(min(count, keep << (blocks - block)) for block, count in enumerate(even, 1))
