"""The reference of the worked examples: no cache, every position of the prompt and of the new tokens at once."""

import jax.numpy as jnp


def uncached(layers, prompt, new, cut, at):
    """Hidden states [B, S' + T, D] of a prompt [B, S, D] that was cut before layer `at`, and T tokens that follow it.

    Each of `layers` is `layer(x, positions, mask)` with a mask [B, 1, Q, K]. Before the cut the prompt is whole, and
    the new tokens see only what the cut will leave of it. Behind it, everything is an ordinary short sequence.
    """
    prompt_length = prompt.shape[1]
    x = jnp.concatenate([prompt, new], axis=1)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    stays = (cut.kept[:, :, None] == positions[:, None, :]).any(1) | (positions >= prompt_length)
    mask = jnp.tril(stays[:, None, :] | (positions < prompt_length)[:, :, None])
    for layer in layers[:at]:
        x = layer(x, positions, mask[:, None])
    x = jnp.concatenate([cut.hidden, x[:, prompt_length:]], axis=1)
    positions = jnp.concatenate([cut.kept, positions[:, prompt_length:]], axis=1)
    for layer in layers[at:]:
        x = layer(x, positions, jnp.tri(x.shape[1], dtype=bool)[None, None])
    return x
