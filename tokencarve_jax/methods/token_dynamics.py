"""Token Dynamics (VQToken, arXiv 2503.16980): clusters over all frames, and a map of which place is of which."""

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.greedy import prepare
from tokencarve_jax.scores.ranking import USABLE, best_first, tiers
from tokencarve_jax.scores.similarity import cosine
from tokencarve_jax.tokens import Selection, Tokens, rows, rows_of

_FLOOR = 1e-6  # of the weight of a draw


def token_dynamics(tokens: Tokens, *, keep: int, key: jax.Array, iterations: int = 50) -> Selection:
    """K clusters of the tokens of all frames, by k-means under the cosine; each becomes the mean of its tokens.

    Clusters begin at tokens that are drawn one after another, with odds of their squared distance to the nearest one
    drawn (k-means++), all at length 1. Then every token joins the centre most like it, and a centre becomes the mean of
    what joined, at length 1; one that nothing joined stays. This is repeated until no token changes sides. A row
    stands, and keeps its position, at the middle token of its cluster in reading order, the first of two. Where fewer
    than K clusters have tokens, the first of the others stand by themselves.

    `assignment` is the paper's map (which cluster each place of each frame belongs to). One frame (an image) is
    clustered in the same way; the grid is not read.

    Args:
        tokens: N of them.
        keep: K.
        key: what is drawn, the same for all sets of a batch.
        iterations: the most repetitions.

    Returns:
        The selection. O(K N D) for the draws, and the same for each repetition.

    Source: Token Dynamics, later VQToken (arXiv 2503.16980), fixed length (officially 32, 24 or 12 clusters), as in its
    released code, with these deviations: means are of the tokens as they are, there of tokens at length 1, on which the
    model was trained; the attention that mixes the map into the clusters is trained and left out; so is the search for
    a K.
    """
    tier = tiers(tokens.valid, tokens.values)
    usable = tier == USABLE
    points = prepare(tokens.values, usable)
    centres = _seeds(points, usable, jax.random.uniform(key, (keep,), jnp.float32))
    joined = _clusters(points, usable, centres, iterations)
    mine = (joined[..., None] == jnp.arange(keep)) & usable[..., None]  # [..., N, K]
    middle = (mine.sum(-2, keepdims=True) - 1) // 2
    stands = mine & (jnp.cumsum(mine, axis=-2) - 1 == middle)
    indices = jnp.sort(best_first(jnp.zeros(tokens.shape), tier + stands.any(-1))[..., :keep], axis=-1)
    row = rows_of(indices, tokens.shape[-1])
    host = rows(row, rows(stands.argmax(-2).astype(jnp.int32), joined))
    return Selection(indices, jnp.where((row < 0) & usable, host, row))


def _seeds(points: jax.Array, usable: jax.Array, draws: jax.Array) -> jax.Array:
    """The tokens [..., K, D] that clusters begin with, one for each draw in [0, 1)."""

    def take(nearest: jax.Array, draw: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = jnp.cumsum(jnp.where(usable, nearest + _FLOOR, 0), axis=-1)
        index = (total > draw.astype(total.dtype) * total[..., -1:]).argmax(-1).astype(jnp.int32)
        centre = rows(points, index[..., None])
        # Squared distance at length 1
        apart = jnp.maximum(jnp.square(points - centre).sum(-1), 0)
        return jnp.minimum(nearest, apart), centre[..., 0, :]

    first = jnp.where(usable, 4, 0).astype(points.dtype)  # as far as can be, all alike
    return jnp.moveaxis(lax.scan(take, first, draws)[1], 0, -2)


def _clusters(points: jax.Array, usable: jax.Array, centres: jax.Array, iterations: int) -> jax.Array:
    """Which of the centres [..., K, D], moved until nothing changes, each token joined: [..., N] int32."""
    State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    number = jnp.arange(centres.shape[-2], dtype=jnp.int32)

    def join(centres: jax.Array) -> jax.Array:
        return cosine(points, centres).argmax(-1).astype(jnp.int32)

    def step(state: State) -> State:
        centres, joined, _, done = state
        joins = ((joined[..., None, :] == number[:, None]) & usable[..., None, :]).astype(points.dtype)
        sums = jnp.matmul(joins, points, precision=lax.Precision.HIGHEST)
        count = joins.sum(-1, keepdims=True)
        centres = jnp.where(count > 0, sums / jnp.maximum(count, 1), centres)
        again = join(centres)
        return centres, again, (again != joined).any(), done + 1

    start = (centres, join(centres), jnp.ones((), bool), jnp.ones((), jnp.int32))
    return lax.while_loop(lambda state: state[2] & (state[3] < iterations), step, start)[1]
