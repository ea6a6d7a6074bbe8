"""CLIP's text tower (arXiv 2103.00020) in Flax NNX, and the projections into the space that texts and images share.

Axis letters: B texts, S tokens, N patches, C width of the vision tower, D width, P width of the space.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from models.nn.attention import attend
from models.nn.clip import EncoderLayer, layer_norm
from models.nn.clip_config import ClipConfig, ClipTextConfig
from models.nn.linear import Linear

_LEGACY_EOS = 2  # in configs from before transformers 4.31, whatever the tokenizer's id is


def end_of_text(input_ids: jax.Array, eos_token_id: int) -> jax.Array:
    """The token that represents each text, [B, S] int -> [B] int32, as in transformers.

    The first one with the id that ends a text, else the first token. Configs with id 2 are older than that rule: the
    first of the largest ids, which ends a text in their vocabulary.
    """
    score = input_ids if eos_token_id == _LEGACY_EOS else input_ids == eos_token_id
    return jnp.argmax(score, axis=-1).astype(jnp.int32)


class ClipTextTower(nnx.Module):
    """Token ids to one hidden state per text. Weights are initialised at random until a checkpoint is loaded."""

    def __init__(self, config: ClipTextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        normal, width = nnx.initializers.normal(0.02), config.hidden_size
        self.token_embedding = nnx.Param(normal(rngs.params(), (config.vocab_size, width), dtype))
        self.position_embedding = nnx.Param(normal(rngs.params(), (config.context, width), dtype))
        self.layers = nnx.List([EncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.final_layer_norm = layer_norm(config, dtype, rngs)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """One hidden state per text, [B, D] in the weights' dtype.

        Args:
          input_ids: [B, S] integers, S at most the context.
          attention_mask: [B, S] bool, False for padding, which no token sees.
        """
        length = input_ids.shape[1]
        x = jnp.take(self.token_embedding[...], input_ids, axis=0) + self.position_embedding[...][:length]
        mask = jnp.tri(length, dtype=bool) & attention_mask[:, None]
        for layer in self.layers:
            query, key, value = layer.heads(x)
            x = layer.finish(x + layer.self_attn.out_proj(attend(query, key, value, mask=mask, causal=True)))
        at = end_of_text(input_ids, self.config.eos_token_id)
        return self.final_layer_norm(jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0])


class PatchEmbedding(nnx.Module):
    """Maps hidden states of CLIP's vision tower into the space that texts and images share."""

    def __init__(self, config: ClipConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config.vision
        self.post_layernorm = layer_norm(config.vision, dtype, rngs)
        width = config.vision.hidden_size
        self.projection = Linear(width, config.projection_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """[..., N, C] -> [..., N, P] float32."""
        return self.projection(self.post_layernorm(features.astype(jnp.float32)))


class Clip(nnx.Module):
    """The parts of a CLIP that compare patches with texts: all but the layers of its vision tower."""

    def __init__(self, config: ClipConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.text_tower = ClipTextTower(config.text, dtype=dtype, rngs=rngs)
        width = config.text.hidden_size
        self.text_projection = Linear(width, config.projection_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.patches = PatchEmbedding(config, dtype=dtype, rngs=rngs)

    def embed_texts(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Texts as `ClipTextTower` takes them, [B, S] -> [B, P]."""
        return self.text_projection(self.text_tower(input_ids, attention_mask))
