"""TokenCarve inside a Flax NNX decoder.

>>> import jax, jax.numpy as jnp
>>> from flax import nnx
>>> from tokencarve_jax import carve_sequence, last_query_attention

>>> class Layer(nnx.Module):
...     def __init__(self, width, heads, *, rngs):
...         self.heads = heads
...         self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
...         self.out = nnx.Linear(width, width, rngs=rngs)
...     def __call__(self, x):
...         q, k, v = jnp.split(self.qkv(x).reshape(*x.shape[:2], self.heads, -1), 3, axis=-1)
...         mixed = nnx.dot_product_attention(q, k, v, is_causal=True)
...         return x + self.out(mixed.reshape(x.shape)), q[:, -1], k

>>> class Decoder(nnx.Module):
...     def __init__(self, width, heads, depth, *, cut, keep, rngs):
...         self.layers = nnx.List([Layer(width, heads, rngs=rngs) for _ in range(depth)])
...         self.cut, self.keep = cut, keep
...     def __call__(self, x, visual_positions):
...         for i, layer in enumerate(self.layers):
...             if i == self.cut:
...                 attention = last_query_attention(query, keys)
...                 x = carve_sequence(x, attention, visual_positions, keep=self.keep).hidden
...             x, query, keys = layer(x)
...         return x

>>> decoder = Decoder(32, 4, depth=4, cut=2, keep=8, rngs=nnx.Rngs(0))
>>> x = jax.random.normal(jax.random.key(0), (2, 40, 32))
>>> visual = jnp.broadcast_to(jnp.arange(4, 36), (2, 32))
>>> nnx.jit(decoder)(x, visual).shape
(2, 16, 32)
"""
