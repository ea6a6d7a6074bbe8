"""The one loop over decoder layers; a `Flow` is what differs between prefill, decoding, scoring and training.

Axis letters: B batch, S sequence, D width, H heads, G key-value heads, d head width, A axes of a position.
"""

from __future__ import annotations

import jax

from models.engine.sequence import Sequence
from models.nn.attention import attend, window_mask
from models.nn.llama import Decoder, DecoderLayer
from models.nn.rotary import Rotation


class Flow:
    """What happens around the parts of each layer; here a whole sequence, causal, without cache.

    One object is used for one pass while tracing, and may record what passes.

    Args:
      decoder: whose layers these are.
      positions: [B, S, A] int32 rotary positions.
      lengths: [B] int32, real tokens of each row; padding stands behind them.
      kernel: of `attend`.
    """

    def __init__(self, decoder: Decoder, positions: jax.Array, lengths: jax.Array, *, kernel: str = "blocks"):
        self.decoder, self.kernel = decoder, kernel
        self.place(positions, lengths)

    def place(self, positions: jax.Array, lengths: jax.Array) -> None:
        """Set the positions and lengths of the tokens in the layers to come."""
        self.at = self.decoder.rotation(positions)
        self.mask = window_mask(positions, lengths, self.decoder.config.sliding_window)

    def before_layer(self, index: int, hidden: jax.Array) -> jax.Array:
        """[B, S, D] that goes into a layer; a cut shortens it here."""
        del index
        return hidden

    def rotation(self, index: int) -> Rotation:
        """Rotary angles of the tokens that enter a layer."""
        del index
        return self.at

    def query_tokens(self, index: int, hidden: jax.Array) -> tuple[jax.Array, Rotation]:
        """The tokens whose output a layer computes: all of them."""
        return hidden, self.rotation(index)

    def attend(self, index: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """Queries [B, S, H, d] over keys and values [B, S, G, d]: [B, S, H * d]."""
        del index
        return attend(query, key, value, mask=self.mask, causal=True, kernel=self.kernel)

    def after_layer(self, index: int, added: jax.Array, hidden: jax.Array) -> jax.Array:
        """[B, S, D] that comes out of a layer; `added` is what its attention added."""
        del index, added
        return hidden


class Whole(Flow):
    """The flow of a whole sequence that has visual tokens."""

    def __init__(self, decoder: Decoder, sequence: Sequence, *, kernel: str):
        super().__init__(decoder, sequence.positions, sequence.lengths, kernel=kernel)
        self.sequence = sequence

    def after_layer(self, index: int, added: jax.Array, hidden: jax.Array) -> jax.Array:
        """[B, S, D], and what is added behind the layer."""
        del added
        return self.sequence.deepened(index, hidden)


def run_layers(layers: list[DecoderLayer], hidden: jax.Array, flow: Flow) -> jax.Array:
    """Hidden states [B, S, D] through decoder layers.

    Args:
      layers: of the decoder.
      hidden: [B, S, D], the embeddings.
      flow: what is attended to, cached, cut and recorded.

    Returns:
      [B, S', D], before the final norm; S' as the flow leaves it.
    """
    for index, layer in enumerate(layers):
        hidden = flow.before_layer(index, hidden)
        key, value = layer.key_value(hidden, flow.rotation(index))
        query_tokens, at = flow.query_tokens(index, hidden)
        added = layer.self_attn.o_proj(flow.attend(index, layer.query(query_tokens, at), key, value))
        hidden = flow.after_layer(index, added, layer.finish(query_tokens, added))
    return hidden
