"""The choice of the next token from its logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of the choice; hashable, a static argument of the compiled loop.

    Attributes:
      temperature: 0 is greedy. Otherwise logits are divided by it.
      top_k: only the k likeliest tokens are drawn from; None is all.
      top_p: of those, only the likeliest whose probabilities add up to at least this; None is all (nucleus
        sampling, arXiv 1904.09751). The likeliest token always remains.

    Raises:
      ValueError: a setting outside its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; expected at least 1, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a probability in (0, 1], or None for all tokens")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("top_k and top_p have no effect at temperature 0; set a temperature above 0")


GREEDY = Sampling()


def narrow(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Apply temperature, top-k and top-p, in transformers' order, to logits [B, V] float32.

    Tokens that cannot be drawn get minus infinity; the temperature must be above 0.
    """
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability  # what likelier tokens add up to
        least = jnp.where(before < sampling.top_p, ranked, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def choose(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """One token per row, [B] int32, from logits [B, V] float32."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, narrow(logits, sampling), axis=-1).astype(jnp.int32)
