"""A cut inside a Flax NNX decoder that one does not own: its layers do not hand their query out.

>>> import jax, jax.numpy as jnp
>>> from flax import nnx
>>> from tokencarve_jax import compress_sequence, last_query_attention

>>> def rotary(x, positions):  # [B, S, H, d], [B, S]
...     angle = positions[..., None, None] / 100 ** jnp.linspace(0, 1, x.shape[-1] // 2)
...     a, b = jnp.split(x, 2, axis=-1)
...     return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)
>>> class Layer(nnx.Module):
...     def __init__(self, width, heads, *, rngs):
...         self.qkv = nnx.LinearGeneral(width, (3, heads, width // heads), rngs=rngs)
...         self.out = nnx.LinearGeneral((heads, width // heads), width, axis=(-2, -1), rngs=rngs)
...     def __call__(self, x, positions, mask, cache=None, slot=0):
...         q, k, v = (jnp.squeeze(part, 2) for part in jnp.split(self.qkv(x), 3, axis=2))
...         q, k = rotary(q, positions), rotary(k, positions)
...         if cache is not None:
...             k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, slot, 1) for old, new in zip(cache, (k, v)))
...         return x + self.out(nnx.dot_product_attention(q, k, v, mask=mask)), (k, v)

>>> class Decoder(nnx.Module):
...     def __init__(self, vocabulary, width, heads, depth, *, rngs):
...         self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
...         self.layers = nnx.List([Layer(width, heads, rngs=rngs) for _ in range(depth)])
...     def prefill(self, x):
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

Its prefill again, with a cut before layer 2. The query of the layer before is computed anew, from what entered it; the
lines that end in `# cut` are all that is new:

>>> def prefill(decoder, x, places, method, keep, room):
...     positions, caches = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]), []
...     for i, layer in enumerate(decoder.layers):
...         if i == 2:  # cut
...             query = jnp.squeeze(jnp.split(before.qkv(entered[:, -1:]), 3, axis=2)[0], 2)  # cut
...             attention = last_query_attention(rotary(query, positions[:, -1:])[:, 0], caches[-1][0])  # cut
...             cut = compress_sequence(x, places, method, keep=keep, query_attention=attention)  # cut
...             x, positions = cut.hidden, cut.take(positions, axis=1)  # cut
...             caches = cut.shorten(caches, axis=1)  # cut
...         before, entered = layer, x  # cut
...         x, cache = layer(x, positions, jnp.tri(x.shape[1], dtype=bool)[None, None])
...         caches.append(cache)
...     pad = lambda array: jnp.pad(array, [(0, 0), (0, room), (0, 0), (0, 0)])
...     return decoder.embed.attend(x[:, -1]), jax.tree.map(pad, caches), cut

40 positions are 16 after the cut: the next token stands at position 40, in slot 16.

>>> decoder = Decoder(50, 32, 4, depth=4, rngs=nnx.Rngs(0))
>>> prompt = jax.random.normal(jax.random.key(0), (2, 40, 32))
>>> visual = jnp.arange(4, 36) + jnp.array([[0], [3]])
>>> compiled = nnx.jit(prefill, static_argnames=("method", "keep", "room"))
>>> logits, caches, cut = compiled(decoder, prompt, visual, method="fastv", keep=8, room=6)
>>> steps, tokens = [logits], []
>>> for step in range(6):
...     tokens.append(steps[-1].argmax(-1))
...     position, slot = cut.length + step, cut.hidden.shape[1] + step
...     logits, caches = nnx.jit(Decoder.decode)(decoder, tokens[-1], position, slot, caches)
...     steps.append(logits)
>>> position, slot, caches[0][0].shape
(45, 21, (2, 22, 4, 8))

A forward without any cache over the shortened sequence gives the same logits, with the same positions:

>>> from tests.uncached import uncached
>>> layers = [lambda *args, layer=layer: layer(*args)[0] for layer in decoder.layers]
>>> whole = uncached(layers, prompt, decoder.embed(jnp.stack(tokens, axis=1)), cut, at=2)
>>> bool(jnp.allclose(jnp.stack(steps, axis=1), decoder.embed.attend(whole[:, 15:]), atol=1e-5))
True
"""
