"""TokenCarve inside a Flax Linen decoder.

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> from tokencarve_jax import carve_sequence, last_query_attention

>>> class Layer(nn.Module):
...     heads: int
...     @nn.compact
...     def __call__(self, x):
...         width = x.shape[-1]
...         q, k, v = jnp.split(nn.Dense(3 * width)(x).reshape(*x.shape[:2], self.heads, -1), 3, axis=-1)
...         mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
...         return x + nn.Dense(width)(mixed.reshape(x.shape)), q[:, -1], k

>>> class Decoder(nn.Module):
...     heads: int
...     depth: int
...     cut: int
...     keep: float | int
...     @nn.compact
...     def __call__(self, x, visual_positions):
...         for i in range(self.depth):
...             if i == self.cut:
...                 attention = last_query_attention(query, keys)
...                 x = carve_sequence(x, attention, visual_positions, keep=self.keep).hidden
...             x, query, keys = Layer(self.heads)(x)
...         return x

>>> decoder = Decoder(heads=4, depth=4, cut=2, keep=8)
>>> x = jax.random.normal(jax.random.key(0), (2, 40, 32))
>>> visual = jnp.broadcast_to(jnp.arange(4, 36), (2, 32))
>>> params = jax.jit(decoder.init)(jax.random.key(1), x, visual)
>>> jax.jit(decoder.apply)(params, x, visual).shape
(2, 16, 32)
"""
