"""VidCom2 (arXiv 2505.14454): tokens unlike their frame and unlike the video, more of them in frames that stand out."""

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.frames import Frames
from tokencarve_jax.scores.ranking import best_first, invert
from tokencarve_jax.scores.similarity import unit
from tokencarve_jax.tokens import Selection, Tokens

_WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the Gaussians
_TEMPERATURE = 0.01


def vidcom2(tokens: Tokens, *, keep: int) -> Selection:
    """A budget for each frame by how far it is from the video, in it the tokens least like both; O(N D + N log N).

    Of the D channels the half that varies least over the video counts, and tokens are brought to length 1 in these.
    Likeness to a centre is the sum of Gaussians exp(-d^2 / 2a), a = 1/8, 1/4, 1/2, 1, 2; centres are the mean of the
    video and that of a token's frame. A frame gets K/T (1 + p - 1/T) tokens, rounded, from 1 to all: p is a softmax
    over the T frames, at temperature 0.01, of minus the mean likeness to the video. In each frame those with the least
    sum of both likenesses are taken. Where that makes more than K, the most alike of all frames leave; where fewer, the
    least alike of the rest follow.

    One frame (an image), or tokens without a grid, have one centre, and the K tokens least like it are kept.

    Paper: VidCom2, arXiv 2505.14454, at 25 % by default. The exact count is vLLM's addition; the authors' code leaves
    what rounding makes.
    """
    frames = Frames.of(tokens)
    values, usable = lax.stop_gradient(frames.values), frames.usable
    many = usable.shape[-2]
    count = usable.sum(-1, keepdims=True)  # [..., T, 1]
    channels = jnp.where(_least_varying(values, usable)[..., None, None, :], values, 0)
    points = unit(channels)
    sums = points.sum(-2, keepdims=True)  # [..., T, 1, C]
    frame = sums / jnp.maximum(count, 1)[..., None]
    video = sums.sum(-3, keepdims=True) / jnp.maximum(count.sum(-2, keepdims=True), 1)[..., None]
    to_video = _likeness(points, video)
    apart = -(jnp.where(usable, to_video, 0).sum(-1, keepdims=True) / jnp.maximum(count, 1))  # [..., T, 1]
    share = jax.nn.softmax((apart - apart.max(-2, keepdims=True)) / _TEMPERATURE, axis=-2)
    budget = jnp.minimum(keep / (many * usable.shape[-1]) * (1 + share - 1 / many), 1) * usable.shape[-1]
    budget = jnp.clip(jnp.round(budget), 1, usable.shape[-1])

    unlike = -(to_video + _likeness(points, frame))
    place = invert(best_first(unlike, usable.astype(jnp.int32)))
    return Selection(frames.best(unlike, keep, place < budget))


def _least_varying(values: jax.Array, usable: jax.Array) -> jax.Array:
    """[..., D] bool, the half of the channels with the least variance over the usable tokens of [..., T, P, D]."""
    largest = jnp.abs(values).max((-3, -2, -1), keepdims=True, initial=0)
    values = values / jnp.where(largest > 0, largest, 1)
    count = jnp.maximum(usable.sum((-2, -1)), 1)[..., None, None, None]
    mean = values.sum((-3, -2), keepdims=True) / count
    variance = jnp.where(usable[..., None], jnp.square(values - mean), 0).sum((-3, -2))
    return invert(best_first(-variance)) < max(1, values.shape[-1] // 2)


def _likeness(points: jax.Array, centre: jax.Array) -> jax.Array:
    """[..., T, P]."""
    squares = jnp.square(points - centre).sum(-1)
    return sum((jnp.exp(-squares / (2 * width)) for width in _WIDTHS), jnp.zeros_like(squares))
