"""PruneSID (arXiv 2603.09480): groups of like meaning by principal components, and of each the distinct tokens."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.decompositions import eigh
from tokencarve_jax.scores.greedy import at, row, similarity
from tokencarve_jax.scores.ranking import USABLE, best, best_first, invert, tiers
from tokencarve_jax.scores.spectrum import gram_matrix
from tokencarve_jax.tokens import Selection, Tokens, rows


def prunesid(tokens: Tokens, *, keep: int, class_attention: jax.Array, tower_features: jax.Array) -> Selection:
    """A quota for each group of tokens, and of a group those that attention picks and no picked one is like.

    With n = K + 1, as the authors count the class token, which is none of ours:

    - Groups: the sigmoid of the features, each token's mean over its channels taken off, has n / 4 (rounded down)
      leading principal components. A token is of the component on which its loading is largest by magnitude.
    - Distinct tokens: in each group the one with the highest class attention is picked, those whose features have a
      cosine to it above n / 32 times the mean over all pairs leave, and so on.
    - Quotas: one for every group; what is left of K in proportion to the numbers of distinct tokens, as differences of
      rounded cumulative sums; at most min(5 ceil(n / 64), the group's distinct tokens), raised for all groups alike, as
      far as they have tokens, until the bounds add up to n. What the bounds cut off goes to the groups with the most
      distinct tokens first. A group gives its distinct tokens by attention, then the others by attention.

    Officially n is 192, 128 or 64 of LLaVA-1.5's 576 and the class token, so K is 191, 127, 63.

    Args:
        tokens: N of them.
        keep: K.
        class_attention: [..., N], mean over heads (officially the sum, which ranks alike).
        tower_features: [..., N, C], what goes into the projector.

    Returns:
        The selection; nothing merges. O(N^2 C + N^3).

    Source: PruneSID (arXiv 2603.09480), as in its released code. There the components come from `torch.pca_lowrank`,
    which starts at random and stops before the last ones have converged; here they are exact, so that equal images
    have equal groups. Halves are rounded to even in whole numbers, there in float32; rows stand in raster order, there
    group by group.
    """
    budget = keep + 1
    tier = tiers(tokens.valid, tokens.values, class_attention, tower_features)
    usable = tier == USABLE
    wide = tower_features.astype(jnp.promote_types(tower_features.dtype, jnp.float32))
    features = lax.stop_gradient(jnp.where(usable[..., None], wide, 0))
    order = best_first(jnp.where(usable, class_attention, 0), tier)
    number = min(max(1, budget // 4), *features.shape[-2:])
    group = jnp.where(usable, _groups(features, usable, number), number)  # the last one is of none

    alike = similarity(features, usable)
    pairs = usable.sum(-1) * (usable.sum(-1) - 1)
    off_diagonal = jnp.where(jnp.eye(usable.shape[-1], dtype=bool), 0, alike).sum((-2, -1))
    threshold = budget / 32 * off_diagonal / jnp.maximum(pairs, 1)
    near = (alike > threshold[..., None, None]) & (group[..., :, None] == group[..., None, :])
    distinct = _distinct(near, order)

    members = group[..., None] == jnp.arange(number)
    sizes, picked = members.sum(-2), (members & distinct[..., None]).sum(-2)
    index = lax.broadcasted_iota(jnp.int32, tier.shape, tier.ndim - 1)
    line = lax.sort((group, ~distinct, invert(order), index), num_keys=3)[-1]  # by group, and in it as it gives
    own = jnp.minimum(group, number - 1)
    place = invert(line) - rows(jnp.cumsum(sizes, axis=-1) - sizes, own)
    chosen = usable & (place < rows(quotas(sizes, picked, budget), own))
    return Selection(best(jnp.zeros(tier.shape), keep, jnp.where(chosen, USABLE + 1, tier)))


def _groups(features: jax.Array, usable: jax.Array, number: int) -> jax.Array:
    """The component, 0 for the largest, on which each token's loading is largest: [..., N] int32."""
    told = jax.nn.sigmoid(features)
    told = jnp.where(usable[..., None], told - told.mean(-1, keepdims=True), 0)
    vectors, values = eigh(gram_matrix(told))
    loading, size = jnp.abs(vectors[..., : -number - 1 : -1]), values[..., : -number - 1 : -1]
    real = size > features.shape[-2] * jnp.finfo(size.dtype).eps * size[..., :1]  # and not rounding
    return jnp.where(real[..., None, :], loading, -1).argmax(-1).astype(jnp.int32)


def _distinct(near: jax.Array, order: jax.Array) -> jax.Array:
    """Which tokens are picked [..., N]: in their `order`, those that no picked one is `near` [..., N, N]."""

    def pick(near_to_picked: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        picked = ~at(near_to_picked, index)
        return near_to_picked | (picked[..., None] & row(near, index)), picked

    _, picked = lax.scan(pick, jnp.zeros(order.shape, bool), jnp.moveaxis(order, -1, 0))
    return rows(jnp.moveaxis(picked, 0, -1), invert(order))


def quotas(sizes: jax.Array, distinct: jax.Array, budget: int) -> jax.Array:
    """How many each group gives, [..., G] int32, from the numbers of its tokens and of the distinct ones."""
    least = jnp.minimum(1, sizes)
    most = jnp.minimum(distinct, 5 * math.ceil(budget / 64))
    raised = jnp.zeros_like(sizes[..., :1])
    for step in reversed([2**bit for bit in range(budget.bit_length())]):
        short = jnp.minimum(most + raised + step - 1, sizes).sum(-1, keepdims=True) < budget
        raised = jnp.where(short, raised + step, raised)
    most = jnp.minimum(most + raised, sizes)

    more = jnp.maximum(budget - 1 - least.sum(-1, keepdims=True), 0)
    total = jnp.maximum(distinct.sum(-1, keepdims=True), 1)
    whole, part = jnp.divmod(jnp.cumsum(distinct, axis=-1) * more, total)
    whole += (2 * part > total) | ((2 * part == total) & (whole % 2 == 1))
    quota = jnp.minimum(least + jnp.diff(whole, axis=-1, prepend=0), most)

    room, line = most - quota, best_first(distinct)
    before = rows(jnp.cumsum(rows(room, line), axis=-1), invert(line)) - room
    return quota + jnp.clip(least.sum(-1, keepdims=True) + more - quota.sum(-1, keepdims=True) - before, 0, room)
