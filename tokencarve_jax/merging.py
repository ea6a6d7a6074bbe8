"""What any compressor can do for the tokens that it would drop, and where a group of tokens stands.

Axis letters: N tokens before, K after, A axes of a position.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.promotion import usual_promotion
from tokencarve_jax.scores.similarity import cosine
from tokencarve_jax.tokens import Compressed, Selection, Tokens, gather, rows


@usual_promotion
def merge_rest(tokens: Tokens, selection: Selection, usable: jax.Array) -> Compressed:
    """Carry a decision out, and let all that it drops join the survivors.

    Each usable token that joins nothing by the decision joins the survivor whose value, as it was before, is the most
    similar by cosine in float32, of equals the first. A row that such a token joined becomes the mean of its whole
    group, weighted by sizes: of these, of those that the decision put there, and of the token that stands there, as
    all of them were before; weights and values of the decision's own no longer count there. Every other row is what
    `gather` makes of it, bit for bit.

    Args:
        tokens: N of them.
        selection: the decision.
        usable: [..., N] bool: valid, and all that is known about it is finite. Other tokens join nothing, and nothing
            joins them.

    Returns:
        The K tokens that are left; of the usable ones none is dropped. O(N K D).

    Source: RESTORE's (arXiv 2606.01711) merging of all that a selection leaves out, by size-weighted means.
    """
    decided = gather(tokens, selection)
    values = jnp.where(usable[..., None], tokens.values, 0).astype(jnp.float32)
    similarity = cosine(values, rows(values, decided.indices))
    similarity = jnp.where(rows(usable, decided.indices)[..., None, :], similarity, -jnp.inf)
    rest = usable & (decided.assignment < 0)
    assignment = jnp.where(rest, similarity.argmax(-1).astype(jnp.int32), decided.assignment)
    whole = gather(tokens, Selection(decided.indices, assignment))
    row = jnp.arange(decided.indices.shape[-1], dtype=jnp.int32)[:, None]
    joined = (rest[..., None, :] & (assignment[..., None, :] == row)).any(-1)
    values = jnp.where(joined[..., None], whole.tokens.values, decided.tokens.values)
    return dataclasses.replace(whole, tokens=dataclasses.replace(whole.tokens, values=values))


@usual_promotion
def median_positions(positions: jax.Array, assignment: jax.Array, keep: int) -> jax.Array:
    """The lower median of each group's positions, on each axis by itself; each token counts once.

    Args:
        positions: [..., N, A] int32.
        assignment: [..., N] int32, the row that each token lives on in, or -1; every row has one or more.
        keep: K.

    Returns:
        [..., K, A] int32. O(A N log N + K N).

    Source: RESTORE's (arXiv 2606.01711) positions of merged tokens.

    Examples:
        >>> median_positions(jnp.array([[3], [9], [5], [4]]), jnp.array([0, 1, 1, 1]), 2).tolist()
        [[3], [5]]
    """
    group = jnp.where(assignment < 0, keep, assignment)  # what is dropped comes last
    sizes = (group[..., None, :] == jnp.arange(keep, dtype=jnp.int32)[:, None]).sum(-1)
    by_axis = jnp.swapaxes(positions, -1, -2)
    _, ordered = lax.sort((jnp.broadcast_to(group[..., None, :], by_axis.shape), by_axis), num_keys=2)
    middle = jnp.cumsum(sizes, axis=-1) - sizes + (sizes - 1) // 2
    return rows(jnp.swapaxes(ordered, -1, -2), middle)
