"""The Llama decoder family (arXiv 2302.13971; Mistral, Qwen2, Qwen3) in Flax NNX, with Hugging Face's attribute names.

A layer is pure pieces around attention, so that `models.engine.loop` decides what is attended to and what is cached::

    query, (key, value) = layer.query(x, rotation), layer.key_value(x, rotation)
    x = layer.finish(x, layer.self_attn.o_proj(attend(query, key, value)))

Axis letters: B batch, S sequence, D width, H heads, G key-value heads, d head width, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from models.nn.linear import ACTIVATIONS, Linear
from models.nn.llama_config import TextConfig
from models.nn.rotary import Rotation, rotate, rotation


class Attention(nnx.Module):
    """The four projections of grouped-query attention; where the config says so, norms of each head's query and key."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, bias = config.hidden_size, config.attention_bias
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(width, queries, use_bias=bias, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(width, keys, use_bias=bias, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(width, keys, use_bias=bias, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(queries, width, use_bias=config.output_bias, dtype=dtype, rngs=rngs)
        self.q_norm = _rms_norm(config.head_dim, config, dtype, rngs) if config.head_norms else None
        self.k_norm = _rms_norm(config.head_dim, config, dtype, rngs) if config.head_norms else None


class Mlp(nnx.Module):
    """Gated feed-forward network."""

    def __init__(self, width: int, inner: int, *, activation: str, use_bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = activation
        self.gate_proj = Linear(width, inner, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(width, inner, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(inner, width, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, D]."""
        return self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))


def _rms_norm(width: int, config: TextConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=config.rms_norm_eps, param_dtype=dtype, rngs=rngs)


class DecoderLayer(nnx.Module):
    """One pre-norm block."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        self.input_layernorm = _rms_norm(config.hidden_size, config, dtype, rngs)
        self.self_attn = Attention(config, dtype=dtype, rngs=rngs)
        self.post_attention_layernorm = _rms_norm(config.hidden_size, config, dtype, rngs)
        self.mlp = Mlp(
            config.hidden_size,
            config.intermediate_size,
            activation=config.activation,
            use_bias=config.mlp_bias,
            dtype=dtype,
            rngs=rngs,
        )

    def _heads(self, x: jax.Array, norm: nnx.RMSNorm | None = None) -> jax.Array:
        heads = x.reshape(*x.shape[:2], -1, self.head_dim)
        return heads if norm is None else norm(heads)

    def query(self, x: jax.Array, at: Rotation) -> jax.Array:
        """[B, S, D] -> rotated queries [B, S, H, d]."""
        attention = self.self_attn
        return rotate(self._heads(attention.q_proj(self.input_layernorm(x)), attention.q_norm), at)

    def key_value(self, x: jax.Array, at: Rotation) -> tuple[jax.Array, jax.Array]:
        """[B, S, D] -> rotated keys and values, each [B, S, G, d]."""
        attention, normed = self.self_attn, self.input_layernorm(x)
        key = self._heads(attention.k_proj(normed), attention.k_norm)
        return rotate(key, at), self._heads(attention.v_proj(normed))

    def finish(self, x: jax.Array, added: jax.Array) -> jax.Array:
        """The layer's output [B, S, D] from its input and what attention added, output projection included."""
        x = x + added
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
    """Embedding, layers, final norm and output head. Random weights until a checkpoint is loaded."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = nnx.Embed(config.vocab_size, config.hidden_size, param_dtype=dtype, rngs=rngs)
        self.layers = nnx.List([DecoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = _rms_norm(config.hidden_size, config, dtype, rngs)
        self.lm_head = (  # a tied head has no weights of its own
            None
            if config.tie_word_embeddings
            else Linear(config.hidden_size, config.vocab_size, use_bias=False, dtype=dtype, rngs=rngs)
        )

    def rotation(self, positions: jax.Array) -> Rotation:
        """Rotary angles of `positions` [B, S, A] int32."""
        config = self.config
        return rotation(
            positions,
            head_dim=config.head_dim,
            theta=config.rope_theta,
            factor=config.rope_factor,
            sections=config.rope_sections,
            interleaved=config.rope_interleaved,
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final norm and output head: [..., D] -> [..., V] float32."""
        hidden = self.norm(hidden)
        weight = self.embed_tokens.embedding[...] if self.lm_head is None else self.lm_head.weight[...]
        return jnp.einsum("...d,vd->...v", hidden, weight, preferred_element_type=jnp.float32)
