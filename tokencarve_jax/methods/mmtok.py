"""MMTok (arXiv 2508.18264): tokens that cover the question and the image."""

import jax
import jax.numpy as jnp
from jax import lax

from tokencarve_jax.scores.greedy import covering, prepare, similarity
from tokencarve_jax.scores.ranking import USABLE, tiers
from tokencarve_jax.tokens import Selection, Tokens


def mmtok(
    tokens: Tokens,
    *,
    keep: int,
    text: jax.Array,
    text_valid: jax.Array,
    tower_features: jax.Array,
    text_temperature: float = 0.02,
    vision_temperature: float = 0.2,
    vision_weight: float = 0.5,
) -> Selection:
    """Greedy maximum coverage of the question's text tokens and of all visual tokens by the kept ones.

    How well a token v covers a text token is a softmax over v of cos(text, projected token) / 0.02, divided by the
    number of text tokens; how well it covers a visual token is a softmax over v of cos(tower's features) / 0.2,
    divided by the number of visual tokens, times 0.5. A row is covered by its best kept token; a step takes the token
    that adds most.

    Paper: MMTok, arXiv 2508.18264. Official settings: `text_temperature` 0.02 for LLaVA and 0.01 for Qwen,
    `vision_temperature` 0.2 and `vision_weight` 0.5 at every budget; 192, 128 and 64 of 576 on LLaVA-1.5, 640, 320 and
    160 of 2,880 on LLaVA-NeXT. Its text is the question without the prompt's own words and stop words.

    Shapes: text [..., T, D], text_valid [..., T], tower_features [..., N, C] -> indices [..., K]. Cost:
    O(N^2 C + N T D) for the kernel, O(K N (N + T)) for the loop.

    Deviations: which text tokens count is `text_valid`'s business, and text tokens with a NaN or an infinity do not.
    Patches inside a square picture's padding, which the original excludes from being kept, are tokens like all others
    unless `valid` marks them. The numbers of tokens that the softmax and the means see are those of usable ones.
    """
    tier = tiers(tokens.valid, tokens.values, tower_features)
    usable = tier == USABLE
    text = lax.stop_gradient(text)
    asked = text_valid & jnp.isfinite(text).all(-1)

    values, words = prepare(tokens.values, usable), prepare(text, asked)
    words = words.astype(values.dtype)
    to_text = jnp.matmul(values, jnp.swapaxes(words, -1, -2), precision=lax.Precision.HIGHEST)
    to_text = _shared(to_text / text_temperature, usable, asked)
    to_vision = _shared(similarity(tower_features, usable) / vision_temperature, usable, usable) * vision_weight
    kernel = jnp.concatenate([to_text, to_vision.astype(to_text.dtype)], axis=-1)
    return Selection(covering(tier, keep, kernel))


def _shared(logits: jax.Array, usable: jax.Array, counted: jax.Array) -> jax.Array:
    """Softmax of [..., N, R] over the usable ones of N, divided by the number of counted rows; 0 for all others."""
    share = jax.nn.softmax(jnp.where(usable[..., None], logits, jnp.finfo(logits.dtype).min), axis=-2)
    number = jnp.maximum(counted.sum(-1), 1)[..., None, None]
    return jnp.where(usable[..., None] & counted[..., None, :], share, 0) / number.astype(logits.dtype)
