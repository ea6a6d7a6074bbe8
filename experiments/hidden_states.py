"""What a cut would see in a model: the visual tokens' hidden states, and the last prompt token's attention to them."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.loading import Checkpoint
from experiments.scenes import make_scene
from models.layers.attention import attend, causal_mask
from models.llava import Llava
from models.engine.prefill import embed
from models.engine.prompt import Prompt
from tokencarve_jax import last_query_attention

LAYERS = 4  # those after which hidden states are taken


@jax.jit
def visual_states(llava: Llava, prompt: Prompt) -> list[tuple[jax.Array, jax.Array]]:
    """What a cut before layer 1, 2, 3 or 4 would be made from; nothing is cut on the way.

    Args:
      llava: the model.
      prompt: a packed batch, every row of which has all of its visual tokens.

    Returns:
      Per layer the visual rows of the hidden state entering it [B, N, D] in the model's dtype, and the attention of
      the layer before, from the last prompt token to them [B, N] float32.
    """
    hidden, decoder = embed(llava, prompt), llava.decoder
    positions = jnp.broadcast_to(jnp.arange(hidden.shape[1]), hidden.shape[:2])
    at, found = decoder.rotation(positions), []
    mask = causal_mask(prompt.lengths, hidden.shape[1], positions=positions, window=decoder.config.sliding_window)
    rows, last = jnp.arange(hidden.shape[0]), prompt.lengths - 1
    for layer in decoder.layers[:LAYERS]:
        query, (key, value) = layer.query(hidden, at), layer.key_value(hidden, at)
        attention = last_query_attention(query[rows, last], key, mask=mask[rows, last])
        hidden = layer.finish(hidden, attend(query, key, value, mask=mask))
        places = prompt.visual_positions
        found.append((hidden[rows[:, None], places], attention[rows[:, None], places]))
    return found


def of_scenes(checkpoint: Checkpoint, scenes: int) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Show held-out scenes to a model, the families of questions in turn.

    Args:
      checkpoint: model and processor.
      scenes: how many, from the first.

    Yields:
      Per scene, for each layer from 1 on, tokens [N, D] and attention [N], both float32.
    """
    for index in range(scenes):
        scene = make_scene("test", index)
        question = scene.questions[index % len(scene.questions)]
        inputs = checkpoint.encode([[scene.image]], [question.text])
        prompt = checkpoint.llava.prompt(inputs.input_ids, inputs.pixel_values, inputs.attention_mask)
        states = visual_states(checkpoint.llava, prompt)
        yield [(np.asarray(tokens[0], np.float32), np.asarray(attention[0])) for tokens, attention in states]
