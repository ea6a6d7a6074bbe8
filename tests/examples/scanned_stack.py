"""A cut in a decoder whose layers are one `lax.scan` (or `nn.scan`, whose parameters are stacked just so).

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

A scan has one shape for all of its layers, so the cut ends one and begins another. The layer before the cut stands by
itself, and only its query and keys leave it. A scan returns its caches stacked, layer first: [L, B, S, K, d].

>>> def segment(params, x, positions):
...     def body(x, layer_params):
...         x, query, cache = layer(layer_params, x, positions, jnp.tri(x.shape[1], dtype=bool)[None, None])
...         return x, cache
...     return jax.lax.scan(body, x, params)
>>> def prefill(params, x, places, room, cut_at=3):
...     positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
...     part = lambda start, stop: jax.tree.map(lambda w: jax.lax.slice_in_dim(w, start, stop), params)
...     x, before = segment(part(0, cut_at - 1), x, positions)
...     last = jax.tree.map(lambda w: jnp.squeeze(w, 0), part(cut_at - 1, cut_at))  # cut
...     x, query, (keys, values) = layer(last, x, positions, jnp.tri(x.shape[1], dtype=bool)[None, None])  # cut
...     attention = last_query_attention(query, keys)  # cut
...     cut = compress_sequence(x, places, "tokencarve", keep=8, query_attention=attention)  # cut
...     before = cut.shorten(before, axis=2, batch=1, room=room)  # cut
...     at = jax.tree.map(lambda a: a[None], cut.shorten((keys, values), axis=1, room=room))  # cut
...     x, after = segment(part(cut_at, params["q"].shape[0]), cut.hidden, cut.take(positions, axis=1))  # cut
...     after = jax.tree.map(lambda a: jnp.pad(a, [(0, 0), (0, 0), (0, room), (0, 0), (0, 0)]), after)
...     return x[:, -1:], jax.tree.map(lambda *parts: jnp.concatenate(parts), before, at, after), cut  # cut

All layers are equally long then, and decoding is one scan again:

>>> def decode(params, x, position, slot, caches):
...     positions, mask = jnp.full(x.shape[:2], position), jnp.arange(caches[0].shape[2]) <= slot
...     def body(x, layer_params_and_cache):
...         layer_params, cache = layer_params_and_cache
...         x, _, cache = layer(layer_params, x, positions, mask[None, None, None], cache, slot)
...         return x, cache
...     return jax.lax.scan(body, x, (params, caches))

>>> init = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / 6
>>> shapes = {"q": (32, 4, 8), "k": (32, 2, 8), "v": (32, 2, 8), "o": (4, 8, 32)}
>>> params = {name: init(seed, 6, *shapes[name]) for seed, name in enumerate("qkvo")}
>>> embedding, prompt = init(10, 50, 32), 6 * init(11, 2, 40, 32)
>>> visual = jnp.arange(4, 36) + jnp.array([[0], [3]])
>>> last, caches, cut = jax.jit(prefill, static_argnames="room")(params, prompt, visual, room=6)
>>> states, new = [last], []
>>> for step in range(6):
...     new.append(jnp.take(embedding, (states[-1][:, 0] @ embedding.T).argmax(-1), axis=0)[:, None])
...     position, slot = cut.length + step, cut.hidden.shape[1] + step
...     last, caches = jax.jit(decode)(params, new[-1], position, slot, caches)
...     states.append(last)
>>> position, slot, caches[0].shape
(45, 21, (6, 2, 22, 2, 8))

A forward without any cache over the shortened sequence gives the same states, with the same positions:

>>> from tests.uncached import uncached
>>> layers = [lambda *args, i=i: layer(jax.tree.map(lambda w: w[i], params), *args)[0] for i in range(6)]
>>> whole = uncached(layers, prompt, jnp.concatenate(new, axis=1), cut, at=3)
>>> bool(jnp.allclose(jnp.concatenate(states, axis=1), whole[:, 15:], atol=1e-5))
True
"""
