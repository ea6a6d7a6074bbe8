"""What a cut's compressor is told, computed only where it asks.

Axis letters: B batch, S sequence, N visual tokens, T text tokens, D width, H heads, G key-value heads, d head width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.engine.plan import Cut
from models.engine.relevance import FEATURES
from models.engine.sequence import Sequence
from models.nn.llama import Decoder, DecoderLayer
from tokencarve_jax import last_query_attention
from tokencarve_jax.tokens import rows


@dataclasses.dataclass(frozen=True)
class LayerTrace:
    """What the decoder layer before a cut did.

    Attributes:
      layer: the layer.
      entered: [B, S, D], its input.
      query: [B, S, H, d], rotated.
      key: [B, S, G, d], rotated.
      added: [B, S, D], what its attention added.
    """

    layer: DecoderLayer
    entered: jax.Array
    query: jax.Array
    key: jax.Array
    added: jax.Array


def of_tower(cut: Cut, sequence: Sequence) -> dict[str, Callable[[], Any]]:
    """What was read in the tower, of the layer that the cut's compressor reads."""
    found = {name: array for (name, layer), array in sequence.evidence.items() if layer == cut.compressor.tower_layer}
    return {name: functools.partial(found.get, name) for name in found}


def of_text(sequence: Sequence) -> dict[str, Callable[[], Any]]:
    """What can be known of the question before the decoder's first layer."""
    known = {"text": lambda: sequence.text, "text_valid": lambda: sequence.question}
    asked = sequence.asked
    if asked is not None:
        known["relevance"] = lambda: asked.relevance(sequence.evidence[FEATURES], sequence.visual_valid)
    return known


def of_layers(
    sequence: Sequence, hidden: jax.Array, passed: LayerTrace, behind: DecoderLayer, decoder: Decoder
) -> dict[str, Callable[[], Any]]:
    """What the layers around a cut have to say.

    Args:
      sequence: before the cut.
      hidden: [B, S, D], what enters the layer behind the cut.
      passed: the layer before the cut.
      behind: the layer behind the cut.
      decoder: of both.

    Returns:
      By name, what computes it.
    """
    at, last, window = sequence.visual_slots, sequence.last, decoder.config.sliding_window

    def attention(query: jax.Array, key: jax.Array, slots: jax.Array) -> jax.Array:
        """Of the queries at `slots` [B, R], from all of them, to the visual tokens: [B, R, N]."""

        def row(query: jax.Array, slot: jax.Array) -> jax.Array:
            return last_query_attention(query, key, mask=sequence.seen_from(slot, window))

        every = jax.vmap(row, in_axes=1, out_axes=1)(rows(query, slots), slots)  # [B, R, S]
        return jnp.take_along_axis(every, at[:, None], axis=2)

    def next_attention() -> jax.Array:
        rotation = decoder.rotation(sequence.positions)
        return attention(behind.query(hidden, rotation), behind.key_value(hidden, rotation)[0], last)[:, 0]

    text = sequence.text_slots
    return {
        "query_attention": lambda: attention(passed.query, passed.key, last)[:, 0],
        "next_attention": next_attention,
        "text_attention": lambda: attention(passed.query, passed.key, text),
        "keys": lambda: rows(passed.layer.plain_key(passed.entered), at),
        "text_keys": lambda: rows(passed.layer.plain_key(passed.entered), text),
        "text_hidden": lambda: rows(hidden, text),
        "attention_output": lambda: rows(passed.added, at),
    }
