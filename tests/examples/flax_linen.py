"""A cut inside a Flax Linen decoder that one does not own: its queries come by `capture_intermediates`.

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> from tokencarve_jax import compress_sequence, last_query_attention

>>> def rotary(x, positions):  # [B, S, H, d], [B, S]
...     angle = positions[..., None, None] / 100 ** jnp.linspace(0, 1, x.shape[-1] // 2)
...     a, b = jnp.split(x, 2, axis=-1)
...     return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)
>>> class Layer(nn.Module):
...     heads: int
...     @nn.compact
...     def __call__(self, x, positions, mask, cache=None, slot=0):
...         width = x.shape[-1]
...         q, k, v = (nn.DenseGeneral((self.heads, width // self.heads), name=name)(x) for name in "qkv")
...         q, k = rotary(q, positions), rotary(k, positions)
...         if cache is not None:
...             k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, slot, 1) for old, new in zip(cache, (k, v)))
...         out = nn.dot_product_attention(q, k, v, mask=mask)
...         return x + nn.DenseGeneral(width, axis=(-2, -1))(out), (k, v)

>>> class Decoder(nn.Module):
...     vocabulary: int
...     width: int
...     heads: int
...     depth: int
...     def setup(self):
...         self.embed = nn.Embed(self.vocabulary, self.width)
...         self.layers = [Layer(self.heads) for _ in range(self.depth)]
...     def __call__(self, x):
...         positions, caches = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]), []
...         for layer in self.layers:
...             x, cache = layer(x, positions, jnp.tri(x.shape[1], dtype=bool)[None, None])
...             caches.append(cache)
...         return self.embed.attend(x[:, -1]), caches
...     def decode(self, tokens, position, slot, caches):
...         x, new = self.embed(tokens)[:, None], []
...         positions, mask = jnp.full(x.shape[:2], position), jnp.arange(caches[0][0].shape[1]) <= slot
...         for layer, cache in zip(self.layers, caches):
...             x, cache = layer(x, positions, mask[None, None, None], cache, slot)
...             new.append(cache)
...         return self.embed.attend(x[:, -1]), new

Its prefill again, layer by layer, with a cut before layer 2. The layer before it is asked for what its module `q` gave,
before rotary embedding; the lines that end in `# cut` are all that is new:

>>> def prefill(decoder, params, x, places, method, keep, room):
...     positions, caches, bound = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]), [], decoder.bind(params)
...     for i, (layer, own) in enumerate((layer.clone(parent=None), layer.variables) for layer in bound.layers):
...         if i == 2:  # cut
...             (query,) = seen["intermediates"]["q"]["__call__"]  # cut
...             attention = last_query_attention(rotary(query, positions)[:, -1], caches[-1][0])  # cut
...             cut = compress_sequence(x, places, method, keep=keep, query_attention=attention)  # cut
...             x, positions = cut.hidden, cut.take(positions, axis=1)  # cut
...             caches = cut.shorten(caches, axis=1)  # cut
...         mask, asked = jnp.tri(x.shape[1], dtype=bool)[None, None], lambda module, _: module.name == "q"  # cut
...         (x, cache), seen = layer.apply(own, x, positions, mask, capture_intermediates=asked)  # cut
...         caches.append(cache)
...     pad = lambda array: jnp.pad(array, [(0, 0), (0, room), (0, 0), (0, 0)])
...     return bound.embed.attend(x[:, -1]), jax.tree.map(pad, caches), cut

40 positions are 16 after the cut: the next token stands at position 40, in slot 16.

>>> decoder = Decoder(vocabulary=50, width=32, heads=4, depth=4)
>>> prompt = jax.random.normal(jax.random.key(0), (2, 40, 32))
>>> visual = jnp.arange(4, 36) + jnp.array([[0], [3]])
>>> params = jax.jit(decoder.init)(jax.random.key(1), prompt)
>>> compiled = jax.jit(prefill, static_argnums=(0, 4, 5, 6))
>>> logits, caches, cut = compiled(decoder, params, prompt, visual, "divprune", 8, 6)
>>> decode = jax.jit(lambda params, *args: decoder.apply(params, *args, method="decode"))
>>> steps, tokens = [logits], []
>>> for step in range(6):
...     tokens.append(steps[-1].argmax(-1))
...     position, slot = cut.length + step, cut.hidden.shape[1] + step
...     logits, caches = decode(params, tokens[-1], position, slot, caches)
...     steps.append(logits)
>>> position, slot, caches[0][0].shape
(45, 21, (2, 22, 4, 8))

A forward without any cache over the shortened sequence gives the same logits, with the same positions:

>>> from tests.uncached import uncached
>>> bound = decoder.bind(params)
>>> layers = [lambda *args, layer=layer: layer(*args)[0] for layer in bound.layers]
>>> whole = uncached(layers, prompt, bound.embed(jnp.stack(tokens, axis=1)), cut, at=2)
>>> bool(jnp.allclose(jnp.stack(steps, axis=1), bound.embed.attend(whole[:, 15:]), atol=1e-5))
True
"""
