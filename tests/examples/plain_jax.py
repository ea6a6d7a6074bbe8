"""TokenCarve inside a plain-JAX decoder loop.

>>> import jax, jax.numpy as jnp
>>> from tokencarve_jax import carve_sequence, last_query_attention

A decoder in a dozen lines: `layer` returns the new hidden state and, for the cut, its last query and its keys.

>>> def layer(params, x):
...     split = lambda w: (x @ w).reshape(*x.shape[:2], 4, 8)
...     q, k, v = split(params["q"]), split(params["k"]), split(params["v"])
...     out = jax.nn.dot_product_attention(q, k, v, is_causal=True)  # fused: no attention map
...     return x + jax.nn.gelu(out.reshape(x.shape) @ params["o"]), q[:, -1], k
>>> def decoder(layers, x, visual_positions, cut=2, keep=0.25):
...     for i, params in enumerate(layers):
...         if i == cut:
...             attention = last_query_attention(query, keys)
...             x = carve_sequence(x, attention, visual_positions, keep=keep).hidden
...         x, query, keys = layer(params, x)
...     return x[:, -1]

It compiles like any other function, and 40 positions are 16 after the cut: 8 of text and 8 of 32 visual tokens.

>>> keys = jax.random.split(jax.random.key(0), 16)
>>> weights = [jax.random.normal(key, (32, 32)) / 6 for key in keys]
>>> layers = [dict(zip("qkvo", weights[i : i + 4])) for i in range(0, 16, 4)]
>>> x = jax.random.normal(jax.random.key(1), (2, 40, 32))
>>> visual = jnp.broadcast_to(jnp.arange(4, 36), (2, 32))
>>> jax.jit(decoder)(layers, x, visual).shape
(2, 32)
>>> carved = carve_sequence(x, jnp.ones((2, 40)), visual, keep=0.25)
>>> carved.hidden.shape, carved.kept.shape
((2, 16, 32), (2, 16))

A model with rotary positions or a KV cache gathers both with `carved.kept`:

>>> cache = jnp.zeros((2, 40, 4, 8))
>>> jnp.take_along_axis(cache, carved.kept[..., None, None], axis=1).shape
(2, 16, 4, 8)
"""
