"""How long the compressors of a schedule take alone, on arrays of the shapes that a model would hand them."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from models.engine.plan import TOWER, Cut, Schedule
from models.engine.visual import projection
from tokencarve_jax import EVIDENCE, Tokens
from tokencarve_jax.methods.tome import block_counts


class Own:
    """Calls the compressors of a schedule, one after the other, as compiled programs.

    Values are drawn at random: what the methods compute, and how long that takes, is fixed by the shapes. Evidence is
    given to them, and its cost is part of the prefill's time alone.

    Args:
      llava: the model.
      cuts: with counts.
      length: of a sequence, visual tokens included.
    """

    def __init__(self, llava: Any, cuts: Schedule, *, length: int):
        self._calls = []
        left = llava.config.tokens_per_image
        for cut in cuts:
            for before, after in _steps(cut, left, llava.config):
                tokens, told = _arrays(llava, cut, before, text=length - llava.config.tokens_per_image)
                self._calls.append((cut.compressor, tokens, after, told))
            left = int(cut.keep)

    def __call__(self) -> float:
        """Seconds, of all together."""
        start = time.perf_counter()
        for compressor, tokens, keep, told in self._calls:
            jax.block_until_ready(compressor(tokens, keep=keep, **told))
        return time.perf_counter() - start


def _steps(cut: Cut, left: int, config: Any) -> list[tuple[int, int]]:
    """Tokens before and after each call."""
    if cut.compressor.at != TOWER:
        return [(left, int(cut.keep))]
    after = block_counts(left, int(cut.keep), max(config.feature_layers))
    return list(zip((left, *after[:-1]), after, strict=True))


def _arrays(llava: Any, cut: Cut, count: int, *, text: int) -> tuple[Tokens, dict[str, Any]]:
    """One image's tokens, and the evidence about them."""
    vision, decoder = llava.config.vision, llava.config.text
    dtype = llava.decoder.embed_tokens.embedding.dtype
    features = vision.hidden_size * len(llava.config.feature_layers)
    width = features if cut.place == TOWER else decoder.hidden_size
    sizes = {"N": count, "T": text, "C": features, "D": decoder.hidden_size, "F": decoder.hidden_size}
    keys = {"tower_keys": vision.hidden_size // vision.num_heads}
    draw = jax.random.key(0)
    told: dict[str, Any] = {}
    for number, name in enumerate(cut.compressor.evidence):
        if name == "key":
            told[name] = jax.random.key(1)
        elif name == "projector":
            told[name] = projection(llava.projector)
        elif name == "text_valid":
            told[name] = jnp.ones((1, text), bool)
        else:
            sizes["d"] = keys.get(name, decoder.num_kv_heads * decoder.head_dim)
            shape = (1, *(sizes[letter] for letter in EVIDENCE[name]))
            array = jax.random.normal(jax.random.fold_in(draw, number), shape)
            told[name] = jax.nn.softmax(array) if name.endswith("attention") else array.astype(dtype)
    return Tokens.of(jax.random.normal(draw, (1, count, width), dtype)), told
