"""The evidence that compressors may declare, by name; each function computes one only when it is called.

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
from models.nn.rotary import agreement
from tokencarve_jax import last_query_attention
from tokencarve_jax.tokens import rows


@dataclasses.dataclass(frozen=True)
class LayerTrace:
    """What the decoder layer before a cut computed: queries and keys are rotated.

    Attributes:
      layer: the layer.
      hidden: [B, S, D], its input.
      query: [B, S, H, d].
      key: [B, S, G, d].
      added: [B, S, D], what its attention added.
    """

    layer: DecoderLayer
    hidden: jax.Array
    query: jax.Array
    key: jax.Array
    added: jax.Array


def of_tower(cut: Cut, sequence: Sequence) -> dict[str, Callable[[], Any]]:
    """Evidence from the tower layer that the cut's compressor reads."""
    found = {name: array for (name, layer), array in sequence.evidence.items() if layer == cut.compressor.tower_layer}
    return {name: functools.partial(found.get, name) for name in found}


def of_text(sequence: Sequence) -> dict[str, Callable[[], Any]]:
    """Evidence from the question, which needs no decoder layer."""
    known: dict[str, Callable[[], Any]] = {"text": lambda: sequence.text, "text_valid": lambda: sequence.question}
    known["text_relevance"] = lambda: sequence.text_relevance
    questions = sequence.questions
    if questions is not None:
        known["relevance"] = lambda: questions.relevance(sequence.evidence[FEATURES], sequence.visual_valid)
        known["relevance_dot"] = lambda: questions.dot(sequence.evidence[FEATURES], sequence.visual_valid)
    return known


def of_layers(
    sequence: Sequence, hidden: jax.Array, before: LayerTrace, after: DecoderLayer, decoder: Decoder
) -> dict[str, Callable[[], Any]]:
    """Evidence from the decoder layers `before` and `after` a cut; `hidden` [B, S, D] is the output of the first."""
    at, last, window = sequence.visual_slots, sequence.last, decoder.config.sliding_window

    def attention(query: jax.Array, key: jax.Array, slots: jax.Array) -> jax.Array:
        """[B, R, N], from the queries at `slots` [B, R] to the visual tokens."""

        def row(query: jax.Array, slot: jax.Array) -> jax.Array:
            return last_query_attention(query, key, mask=sequence.seen_from(slot, window))

        every = jax.vmap(row, in_axes=1, out_axes=1)(rows(query, slots), slots)  # [B, R, S]
        return jnp.take_along_axis(every, at[:, None], axis=2)

    def next_attention() -> jax.Array:
        rotation = decoder.rotation(sequence.positions)
        return attention(after.query(hidden, rotation), after.key_value(hidden, rotation)[0], last)[:, 0]

    def head_attention() -> jax.Array:
        """[B, H, T, N], divided by the logit of two vectors of ones that stand where query and key stand."""
        slots, groups = sequence.text_slots, before.query.shape[2] // before.key.shape[2]
        keys = jnp.repeat(before.key, groups, axis=2)
        by_head = jax.vmap(attention, in_axes=(2, 2, None), out_axes=1)
        texts, images = (decoder.rotation(rows(sequence.positions, where)) for where in (slots, at))
        every = by_head(before.query[:, :, :, None], keys[:, :, :, None], slots)
        return every / (before.query.shape[-1] ** 0.5 * agreement(texts, images)[:, None])

    text = sequence.text_slots
    return {
        "query_attention": lambda: attention(before.query, before.key, last)[:, 0],
        "next_attention": next_attention,
        "text_attention": lambda: attention(before.query, before.key, text),
        "head_attention": head_attention,
        "keys": lambda: rows(before.key, at).reshape(*at.shape, -1),
        "text_keys": lambda: rows(before.key, text).reshape(*text.shape, -1),
        "text_hidden": lambda: decoder.norm(rows(hidden, text)),
        "normed_hidden": lambda: decoder.norm(rows(hidden, at)),
        "previous_hidden": lambda: rows(before.hidden, at),
        "attention_output": lambda: rows(before.added, at),
    }
