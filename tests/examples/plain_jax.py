"""A cut inside a plain-JAX decoder with a KV cache of its own: rotary positions, grouped queries, greedy decoding.

>>> import jax, jax.numpy as jnp
>>> from tokencarve_jax import compress_sequence, last_query_attention, visual_positions

A decoder as anyone has it. Positions and slots are two arguments:

>>> def rotary(x, positions):  # [B, S, H, d], [B, S]
...     angle = positions[..., None, None] / 100 ** jnp.linspace(0, 1, x.shape[-1] // 2)
...     a, b = jnp.split(x, 2, axis=-1)
...     return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)
>>> def layer(params, x, positions, mask, cache=None, slot=0):
...     q, k, v = (jnp.einsum("bsd,dhe->bshe", x, params[name]) for name in "qkv")
...     q, k = rotary(q, positions), rotary(k, positions)
...     if cache is not None:
...         k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, slot, 1) for old, new in zip(cache, (k, v)))
...     out = jax.nn.dot_product_attention(q, k, v, mask=mask)  # fused: no attention map
...     return x + jnp.einsum("bshe,hed->bsd", out, params["o"]), q[:, -1], (k, v)
>>> def causal(length):
...     return jnp.tri(length, dtype=bool)[None, None]

The prefill with a cut before layer 2. The lines that end in `# cut` are all that it adds:

>>> def prefill(layers, x, is_image, room):
...     positions, caches = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]), []
...     for i, params in enumerate(layers):
...         if i == 2:  # cut
...             places = visual_positions(is_image, count=33)  # cut
...             attention = last_query_attention(query, caches[-1][0])  # cut
...             cut = compress_sequence(x, places, "tokencarve", keep=0.25, query_attention=attention)  # cut
...             x, positions = cut.hidden, cut.take(positions, axis=1)  # cut
...             caches = cut.shorten(caches, axis=1)  # cut
...         x, query, cache = layer(params, x, positions, causal(x.shape[1]))
...         caches.append(cache)
...     pad = lambda array: jnp.pad(array, [(0, 0), (0, room), (0, 0), (0, 0)])
...     return x[:, -1:], jax.tree.map(pad, caches), cut
>>> def decode(layers, x, position, slot, caches):
...     mask, positions = jnp.arange(caches[0][0].shape[1]) <= slot, jnp.full(x.shape[:2], position)
...     for i, params in enumerate(layers):
...         x, _, cache = layer(params, x, positions, mask[None, None, None], caches[i], slot)
...         caches = [*caches[:i], cache, *caches[i + 1 :]]
...     return x, caches

A prompt of 41 positions, of which 33 are visual, is 16 after the cut. The next token stands at position 41, in slot 16:

>>> init = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / 6
>>> shapes = {"q": (32, 4, 8), "k": (32, 2, 8), "v": (32, 2, 8), "o": (4, 8, 32)}
>>> layers = [{name: init(10 * i + j, *shapes[name]) for j, name in enumerate("qkvo")} for i in range(4)]
>>> embedding, prompt = init(100, 50, 32), 6 * init(101, 2, 41, 32)
>>> is_image = (jnp.arange(41) >= jnp.array([[4], [5]])) & (jnp.arange(41) < jnp.array([[37], [38]]))
>>> last, caches, cut = jax.jit(prefill, static_argnames="room")(layers, prompt, is_image, room=6)
>>> cut.length, cut.hidden.shape[1], caches[0][0].shape
(41, 16, (2, 22, 2, 8))
>>> logits, new = [], []
>>> for step in range(6):
...     logits.append(last[:, 0] @ embedding.T)
...     new.append(jnp.take(embedding, logits[-1].argmax(-1), axis=0)[:, None])
...     last, caches = jax.jit(decode)(layers, new[-1], cut.length + step, cut.hidden.shape[1] + step, caches)

That is what a forward without any cache over the shortened sequence gives, with the same positions:

>>> from tests.uncached import uncached
>>> plain = [lambda x, positions, mask, p=p: layer(p, x, positions, mask)[0] for p in layers]
>>> whole = uncached(plain, prompt, jnp.concatenate(new, axis=1), cut, at=2)[:, 15:] @ embedding.T
>>> bool(jnp.allclose(jnp.stack(logits, axis=1), whole[:, :6], atol=1e-5))
True
>>> bool(jnp.allclose(last[:, 0] @ embedding.T, whole[:, 6], atol=1e-5))
True
"""
