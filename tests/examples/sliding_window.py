"""A cut in a decoder with sliding-window layers, every second one (Gemma 2 and 3, Mistral).

>>> import jax, jax.numpy as jnp
>>> from tokencarve_jax import compress_sequence, last_query_attention

>>> def rotary(x, positions):  # [B, S, H, d], [B, S]
...     angle = positions[..., None, None] / 100 ** jnp.linspace(0, 1, x.shape[-1] // 2)
...     a, b = jnp.split(x, 2, axis=-1)
...     return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)
>>> def layer(params, x, positions, mask, cache=None, slot=0):
...     q, k, v = (jnp.einsum("bsd,dhe->bshe", x, params[name]) for name in "qkv")
...     q, k = rotary(q, positions), rotary(k, positions)
...     if cache is not None:
...         k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, slot, 1) for old, new in zip(cache, (k, v)))
...     out = jax.nn.dot_product_attention(q, k, v, mask=mask)
...     return x + jnp.einsum("bshe,hed->bsd", out, params["o"]), q[:, -1], (k, v)
>>> WINDOWS = (12, None, 12, None)  # of layers 0 to 3
>>> def near(positions, key_positions, window):  # [B, Q], [B, K] -> [B, 1, Q, K]
...     return (positions[:, :, None] - key_positions[:, None, :] < window)[:, None]

A window counts positions, and those stay what they were: `take` cuts both kinds of mask along queries and keys.

>>> def prefill(layers, x, places, room):
...     positions, caches = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]), []
...     everywhere = jnp.broadcast_to(jnp.tri(x.shape[1], dtype=bool), (x.shape[0], 1, x.shape[1], x.shape[1]))
...     local = everywhere & near(positions, positions, 12)
...     for i, params in enumerate(layers):
...         if i == 2:  # after a global layer # cut
...             attention = last_query_attention(query, caches[-1][0], window=WINDOWS[i - 1])  # cut
...             cut = compress_sequence(x, places, "tokencarve", keep=8, query_attention=attention)  # cut
...             x, positions = cut.hidden, cut.take(positions, axis=1)  # cut
...             local, everywhere = cut.take((local, everywhere), axis=(2, 3))  # cut
...             caches = cut.shorten(caches, axis=1)  # cut
...         x, query, cache = layer(params, x, positions, local if WINDOWS[i] else everywhere)
...         caches.append(cache)
...     pad = lambda array: jnp.pad(array, [(0, 0), (0, room), (0, 0), (0, 0)])
...     return x[:, -1:], jax.tree.map(pad, caches), cut

When decoding, a local layer needs to know at which position each slot of the cache stands:

>>> def decode(layers, x, position, slot, caches, slot_positions):
...     positions, everywhere = jnp.full(x.shape[:2], position), jnp.arange(slot_positions.shape[1]) <= slot
...     slot_positions = jax.lax.dynamic_update_slice_in_dim(slot_positions, positions, slot, axis=1)
...     local = everywhere & near(positions, slot_positions, 12)
...     new = []
...     for params, window, cache in zip(layers, WINDOWS, caches):
...         x, _, cache = layer(params, x, positions, local if window else everywhere[None, None, None], cache, slot)
...         new.append(cache)
...     return x, new, slot_positions

>>> init = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / 6
>>> shapes = {"q": (32, 4, 8), "k": (32, 2, 8), "v": (32, 2, 8), "o": (4, 8, 32)}
>>> layers = [{name: init(10 * i + j, *shapes[name]) for j, name in enumerate("qkvo")} for i in range(4)]
>>> embedding, prompt = init(100, 50, 32), 6 * init(101, 2, 40, 32)
>>> visual = jnp.arange(4, 36) + jnp.array([[0], [3]])
>>> last, caches, cut = jax.jit(prefill, static_argnames="room")(layers, prompt, visual, room=6)
>>> slot_positions = jnp.pad(cut.kept, [(0, 0), (0, 6)])
>>> states, new = [last], []
>>> for step in range(6):
...     new.append(jnp.take(embedding, (states[-1][:, 0] @ embedding.T).argmax(-1), axis=0)[:, None])
...     position, slot = cut.length + step, cut.hidden.shape[1] + step
...     last, caches, slot_positions = jax.jit(decode)(layers, new[-1], position, slot, caches, slot_positions)
...     states.append(last)
>>> position, slot
(45, 21)

A forward without any cache over the shortened sequence gives the same states, with the same positions:

>>> from tests.uncached import uncached
>>> def plain(params, window):
...     def apply(x, positions, mask):
...         return layer(params, x, positions, mask & near(positions, positions, window) if window else mask)[0]
...     return apply
>>> whole = uncached([plain(*pair) for pair in zip(layers, WINDOWS)], prompt, jnp.concatenate(new, axis=1), cut, at=2)
>>> bool(jnp.allclose(jnp.concatenate(states, axis=1), whole[:, 15:], atol=1e-5))
True

Why after a global layer? The last query of a local layer sees only its window, here 8 of the first row's 32 visual
tokens. The other 24 get exactly nothing, so that they can be told apart by their information alone:

>>> _, query, (keys, _) = layer(layers[0], prompt, jnp.broadcast_to(jnp.arange(40), (2, 40)), None)
>>> attention = last_query_attention(query, keys, window=12)
>>> (jnp.take_along_axis(attention, visual, axis=1) == 0).sum(-1).tolist()
[24, 21]
"""
