"""TokenCarve on a ViT classifier: the class token asks, the patches are carved.

>>> import jax, jax.numpy as jnp
>>> from tokencarve_jax import carve, last_query_attention

>>> def block(params, x):
...     split = lambda w: (x @ w).reshape(*x.shape[:2], 4, 8)
...     q, k, v = split(params["q"]), split(params["k"]), split(params["v"])
...     out = jax.nn.dot_product_attention(q, k, v)
...     return x + jax.nn.gelu(out.reshape(x.shape) @ params["o"]), q, k
>>> def classify(blocks, x, keep=None):
...     for i, params in enumerate(blocks):
...         if keep and i == 2:
...             attention = last_query_attention(q[:, 0], k)[:, 1:]  # from the class token to the patches
...             x = jnp.concatenate([x[:, :1], carve(x[:, 1:], attention, keep=keep).tokens], axis=1)
...         x, q, k = block(params, x)
...     return x[:, 0], x.shape[1]

>>> weights = jax.random.normal(jax.random.key(0), (16, 32, 32)) / 6
>>> blocks = [dict(zip("qkvo", weights[i : i + 4])) for i in range(0, 16, 4)]
>>> images = jax.random.normal(jax.random.key(1), (2, 1 + 64, 32))
>>> whole, tokens = classify(blocks, images)
>>> short, tokens_after = classify(blocks, images, keep=0.25)
>>> tokens, tokens_after, short.shape == whole.shape
(65, 17, True)
"""
