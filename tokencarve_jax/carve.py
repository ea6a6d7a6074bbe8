"""TokenCarve itself: rank by attention and by information, prune, merge the most similar, keep K of N tokens."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from tokencarve_jax.attention import remove_trend
from tokencarve_jax.budget import Budget, describe, plan, static_number
from tokencarve_jax.promotion import on_any_mesh, usual_promotion
from tokencarve_jax.scores.information import DEFAULT, ROUTES, check_method, to_unit_scale
from tokencarve_jax.scores.ranking import USABLE, best_first, fuse_ranks, tiers
from tokencarve_jax.scores.similarity import cosine
from tokencarve_jax.tokens import Tokens, headroom, rows_of, within


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tokens", "indices", "assignment"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Carved:
    """What `carve` leaves of N tokens; frozen, a pytree of three arrays. Nothing is checked when it is made.

    Attributes:
        tokens: [..., K, D] in the input's dtype: kept tokens, some of them the mean of a group.
        indices: [..., K] int32, where each row stood among the N, strictly ascending. A merged row stands where its
            anchor stood.
        assignment: [..., N] int32, the row of `tokens` that token n lives on in, or -1 where it was dropped.

    Source: the survivors of TokenCarve (arXiv 2503.10501); the assignment is this package's own.

    Examples:
        >>> carved = carve(jnp.array([[9.0], [2.0], [8.0], [1.0]]), jnp.array([0.4, 0.2, 0.3, 0.1]), keep=2)
        >>> carved.indices.tolist(), carved.assignment.tolist()  # token 1 went into token 0, token 3 was dropped
        ([0, 2], [0, 0, 1, -1])
        >>> jax.tree.map(jnp.shape, carved)
        Carved(tokens=(2, 1), indices=(2,), assignment=(4,))
    """

    tokens: jax.Array
    indices: jax.Array
    assignment: jax.Array


@usual_promotion
def carve(
    tokens: ArrayLike,
    attention: ArrayLike,
    *,
    keep: float | int,
    attention_weight: float = 0.5,
    oversample: float = 1.5,
    information: str = DEFAULT,
    features: ArrayLike | None = None,
    debias: bool = False,
    valid: ArrayLike | None = None,
) -> Carved:
    """Shrink N tokens to K without training: prune by rank fusion, then merge the most similar of what is left.

    Pure and static: every output shape follows from the input shapes and from static numbers, so it runs under `jit`,
    `vmap`, `scan`, `grad`, `export` and any mesh that shards leading dimensions. Ties go to the lower index.

    Args:
        tokens: [..., N, D], any float dtype. In a decoder: the visual rows of the hidden state entering the layer.
        attention: [..., N], any float dtype: how much each token is attended to, e.g. from `last_query_attention`.
            Only its order matters.
        keep: A float in (0, 1] (a fraction) or an int in 1..N (a count), of Python or NumPy. `1.0` is the identity.
        attention_weight: The weight of the attention ranks, in [0, 1]; the information ranks get the rest. 0 and 1 are
            the single-score ablations.
        oversample: How many tokens per kept one pass the pruning, in [1, 2]; 1 turns the merging off.
        information: The route to the information score, see `information_contribution`.
        features: [..., N, F], what the information score is computed from instead of `tokens`: the attention output of
            the layer, as the paper's text has it, where the released code takes the hidden state.
        debias: Divide the attention by its exponential trend along N first (`remove_trend`).
        valid: [..., N] bool, False marks padding: it has no influence on anything, is never merged, and is kept only
            where fewer than K valid tokens exist.

    Returns:
        A `Carved`. A token with a NaN or an infinity (in its features or its attention too) ranks behind all others,
        ahead of padding only, is never merged, and does not touch the others. Gradients flow through the merged values,
        not through the choice. XLA may take numbers below the smallest normal one (1.2e-38 in float32) for zero: such
        entries count as zero in scores and means, and where everything is that small, ties decide.

    Raises:
        TypeError: An array that must be floating is not, or `keep` is no Python or NumPy number.
        ValueError: A shape or an option does not fit; the message says which.

    Source: TokenCarve (arXiv 2503.10501), stages I (IPGS) and II (similarity merging), as in the released code
    github.com/ShawnTan86/TokenCarve, which breaks ties by chance.

    Examples:
        >>> tokens = jnp.array([[9.0, 0.0], [1.0, 1.0], [0.0, 8.0], [0.0, 0.2], [0.0, 7.0], [0.1, 0.0]])
        >>> attention = jnp.array([0.3, 0.05, 0.3, 0.05, 0.28, 0.02])
        >>> carved = carve(tokens, attention, keep=3)
        >>> print(carved.indices, carved.assignment)
        [0 1 2] [ 0  1  2 -1  2 -1]
        >>> print(carved.tokens)  # the third is the mean of tokens 2 and 4
        [[9.  0. ]
         [1.  1. ]
         [0.  7.5]]
    """
    if isinstance(tokens, Tokens):
        raise TypeError(
            "carve takes an array [..., N, D], got Tokens: pass tokens.values and valid=tokens.valid, or call "
            'COMPRESSORS["tokencarve"](tokens, keep=..., query_attention=...)'
        )
    tokens, attention = _floating("tokens", tokens), _floating("attention", attention)
    if tokens.ndim < 2:
        raise ValueError(f"tokens must be [..., N, D], got shape {tokens.shape}")
    shape = tokens.shape[:-1]
    features = None if features is None else _floating("features", features)
    valid = jnp.ones(shape, dtype=bool) if valid is None else jnp.asarray(valid, dtype=bool)
    for name, got in (
        ("attention", attention.shape),
        ("valid", valid.shape),
        ("features (without its last axis)", shape if features is None else features.shape[:-1]),
    ):
        if got != shape:
            raise ValueError(f"{name} must have shape {shape}, one entry per token, got {got}")
    check_method(information)
    weight = static_number(attention_weight)
    if weight is None:
        raise TypeError(
            f"attention_weight must be a Python or NumPy number in [0, 1], got {describe(attention_weight)}"
        )
    if not 0 <= weight <= 1:
        raise ValueError(f"attention_weight must be in [0, 1], got {weight}")
    budget = plan(shape[-1], keep, oversample)
    if budget.kept == shape[-1]:
        indices = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
        return Carved(tokens=tokens, indices=indices, assignment=indices)

    compiled = functools.partial(
        _carve, budget=budget, attention_weight=float(weight), information=information, debias=bool(debias)
    )
    return on_any_mesh(compiled, tokens)(tokens, attention, features, valid)


class Scores(NamedTuple):
    """What stage I goes by, each [..., N].

    Attributes:
        attention: float, without its trend where that is divided out.
        information: float32, up to a common factor.
        points: int32, their ranks fused; most points first, then the lower index.
        tier: int32, see `tokencarve_jax.scores.ranking.tiers`.
    """

    attention: jax.Array
    information: jax.Array
    points: jax.Array
    tier: jax.Array


def scores(
    tokens: jax.Array,
    attention: jax.Array,
    features: jax.Array | None,
    valid: jax.Array,
    *,
    attention_weight: float,
    information: str,
    debias: bool,
) -> Scores:
    """The scores of stage I, for arrays that `carve` has found to be in order; see there for the arguments."""
    tier = tiers(valid, attention, tokens, *(() if features is None else (features,)))
    usable = tier == USABLE
    # Only orders are taken from the scores, so no gradient goes through them.
    contribution = _information(lax.stop_gradient(tokens if features is None else features), usable, information)
    attention = lax.stop_gradient(attention)
    if debias:
        attention = remove_trend(attention, valid=usable)
    return Scores(attention, contribution, fuse_ranks(attention, contribution, tier, attention_weight), tier)


# Compiled also where the caller is not, so that a call outside `jit` is one program and not a hundred.
@functools.partial(jax.jit, static_argnames=("budget", "attention_weight", "information", "debias"))
def _carve(
    tokens: jax.Array,
    attention: jax.Array,
    features: jax.Array | None,
    valid: jax.Array,
    *,
    budget: Budget,
    attention_weight: float,
    information: str,
    debias: bool,
) -> Carved:
    scored = scores(
        tokens,
        attention,
        features,
        valid,
        attention_weight=attention_weight,
        information=information,
        debias=debias,
    )
    one = functools.partial(_prune_and_merge, budget=budget)
    rows, indices, assignment = jnp.vectorize(one, signature="(n,d),(n),(n)->(k,d),(k),(n)")(
        tokens, scored.points, scored.tier
    )
    return Carved(tokens=rows, indices=indices, assignment=assignment)


def _prune_and_merge(
    tokens: jax.Array, points: jax.Array, tier: jax.Array, *, budget: Budget
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both stages for one set of tokens [N, D]: rows [K, D], indices [K], assignment [N]."""
    # Stage I. Each half in index order: the first of equals is then the one with the lower index.
    order = best_first(points)
    anchors = jnp.sort(order[: budget.anchors])
    others = jnp.sort(order[budget.anchors : budget.survivors])
    kept, row_of = jnp.sort(order[: budget.kept]), functools.partial(rows_of, num_tokens=tokens.shape[0])
    if not budget.merged:
        return jnp.take(tokens, kept, axis=0), kept, row_of(kept)

    # Stage II. The closest pairs merge. Unusable tokens leave before any of them, and leave no trace.
    values = jnp.where((tier == USABLE)[:, None], _at_least_float32(tokens), 0)
    similarity = cosine(jnp.take(values, others, axis=0), jnp.take(values, anchors, axis=0))
    others_tier = jnp.take(tier, others)
    closest = jnp.where(others_tier == USABLE, similarity.max(-1), others)
    leaving = best_first(closest, tier=-others_tier)
    merging, staying = leaving[: budget.merged], leaving[budget.merged :]
    kept = jnp.sort(jnp.concatenate([anchors, jnp.take(others, staying)]))
    members, joins = jnp.take(others, merging), jnp.take(others_tier, merging) == USABLE
    hosts = jnp.take(anchors, jnp.take(similarity.argmax(-1), merging))
    assignment = row_of(kept)
    row = jnp.where(joins, jnp.take(assignment, hosts), -1)
    rows = _add_to_means(jnp.take(tokens, kept, axis=0), jnp.take(values, members, axis=0), row, headroom(values))
    return rows, kept, assignment.at[members].set(row)


def _add_to_means(rows: jax.Array, members: jax.Array, row: jax.Array, scale: jax.Array) -> jax.Array:
    """Turn each of `rows` [K, D] into the plain mean of itself and the `members` [M, D] whose `row` [M] it is.

    Rows without members stay as they are, bit for bit. `scale` keeps the sum within range.
    """
    joins = row == jnp.arange(rows.shape[0])[:, None]
    count = 1 + joins.sum(-1, keepdims=True)
    total = jnp.matmul(joins.astype(members.dtype), members * scale, precision=lax.Precision.HIGHEST)
    mean = (rows.astype(members.dtype) * scale + total) / count
    return jnp.where(count > 1, within(mean / scale, rows.dtype), rows)


def _information(matrix: jax.Array, usable: jax.Array, method: str) -> jax.Array:
    """The information score of the usable tokens, up to a common factor; the others have no influence."""
    scaled, _ = to_unit_scale(_at_least_float32(matrix), usable)
    return ROUTES[method](scaled).astype(jnp.float32)


def _floating(name: str, array: ArrayLike) -> jax.Array:
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got {array.dtype}")
    return array


def _at_least_float32(array: jax.Array) -> jax.Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
