"""EVEREST (arXiv 2211.10636): tokens that move, without its training."""

import jax.numpy as jnp
from jax import lax

from tokencarve_jax.methods.uniform import uniform
from tokencarve_jax.scores.frames import Frames
from tokencarve_jax.tokens import Selection, Tokens


def everest(tokens: Tokens, *, keep: int) -> Selection:
    """The K tokens farthest, by L2 distance, from the one at their place in the frame before; O(N D + N log N).

    All frames share one budget. A token of the first frame has the distance of the one behind it, so that both ends of
    the first movement are kept; ties go to the earlier token. Where one of the two is not finite, nothing is known to
    have moved: 0.

    With one frame (an image), or without a grid, nothing moves: K tokens spread evenly, as `uniform` does.

    Paper: EVEREST, arXiv 2211.10636. Its selection in fine-tuning, which keeps 60 % of the tokens; in pre-training it
    draws a third of the best 30 %. There embeddings of pairs of frames enter a masked autoencoder, before its encoder;
    here they are the decoder's visual tokens. Left out: its choice of frames, and training.
    """
    frames = Frames.of(tokens)
    if frames.usable.shape[-2] == 1:
        return uniform(tokens, keep=keep)
    now, before, known = frames.before()
    largest = lax.stop_gradient(jnp.abs(frames.values).max((-3, -2, -1), keepdims=True, initial=0))
    scale = jnp.where(largest > 0, largest, 1)  # no square can overflow or vanish
    moved = jnp.where(known, jnp.linalg.norm(lax.stop_gradient(now / scale - before / scale), axis=-1), 0)
    return Selection(frames.best(jnp.concatenate([moved[..., :1, :], moved], axis=-2), keep))
