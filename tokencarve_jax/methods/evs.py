"""Efficient Video Sampling (EVS, arXiv 2510.14624, as in vLLM): what changed since the frame before."""

import jax.numpy as jnp

from tokencarve_jax.methods.uniform import uniform
from tokencarve_jax.scores.frames import Frames
from tokencarve_jax.scores.similarity import unit
from tokencarve_jax.tokens import Selection, Tokens


def evs(tokens: Tokens, *, keep: int) -> Selection:
    """The first frame whole, and of the others the tokens least like the one at their place in the frame before.

    The score is 1 - cosine; all frames share one budget, and ties go to the earlier token. Where one of the two tokens
    is not finite, nothing is known to have changed: 0.

    With one frame (an image), or without a grid, nothing was before: K tokens spread evenly, as `uniform` does.

    Args:
        tokens: N of them; `grid` says which are a frame.
        keep: K, at least the tokens of a frame where there are several.

    Returns:
        The selection; nothing merges. O(N D + N log N).

    Raises:
        ValueError: K has no room for the first frame (vLLM would keep that many all the same).

    Source: vLLM's `vllm/multimodal/video_prune/evs.py`, which keeps max(P, floor((1 - q) T P)) of T frames of P tokens.
    The paper (EVS, arXiv 2510.14624) compares pixels.
    """
    frames = Frames.of(tokens)
    *_, many, places = frames.usable.shape
    if many == 1:
        return uniform(tokens, keep=keep)
    if keep < places:
        raise ValueError(
            f"evs keeps the first frame whole: of {many} frames of {places} tokens it leaves {places} or more, "
            f"got keep={keep}"
        )
    now, before, known = frames.before()
    changed = jnp.where(known, 1 - (unit(now) * unit(before)).sum(-1), 0)
    score = jnp.concatenate([jnp.zeros_like(changed[..., :1, :]), changed], axis=-2)
    return Selection(frames.best(score, keep, jnp.arange(many)[:, None] == 0))
