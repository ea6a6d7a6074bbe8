"""What a cut would see in a model: the visual tokens' hidden states, and the last prompt token's attention to them."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from experiments.core.loading import Checkpoint
from experiments.data.scenes import make_scene
from models.engine.embed import embed
from models.engine.loop import Flow, run_layers
from models.engine.model import VisionLanguageModel
from models.engine.prompt import Prompt
from models.engine.sequence import Sequence
from tokencarve_jax import last_query_attention
from tokencarve_jax.tokens import rows

LAYERS = 4  # those after which hidden states are taken


class _Watch(Flow):
    """A flow that notes down what a cut before each of the first layers would see."""

    def __init__(self, llava: VisionLanguageModel, sequence: Sequence):
        super().__init__(llava.decoder, sequence.positions, sequence.lengths)
        self.sequence, self.found = sequence, list[tuple[jax.Array, jax.Array]]()

    def attend(self, index: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """Causal attention; the last token's row of it is noted down."""
        last = self.sequence.last
        seen = self.sequence.seen_from(last[:, 0], self.decoder.config.sliding_window)
        self.attention = last_query_attention(rows(query, last)[:, 0], key, mask=seen)
        return super().attend(index, query, key, value)

    def after_layer(self, index: int, added: jax.Array, hidden: jax.Array) -> jax.Array:
        """The output, of which the visual rows are noted down."""
        at = self.sequence.visual_slots
        self.found.append((rows(hidden, at), rows(self.attention, at)))
        return hidden


@jax.jit
def visual_states(llava: VisionLanguageModel, prompt: Prompt) -> list[tuple[jax.Array, jax.Array]]:
    """What a cut before layer 1, 2, 3 or 4 would be made from; nothing is cut, and every row has all visual tokens.

    Returns:
      Per layer the visual rows of the hidden state entering it [B, N, D] in the model's dtype, and the attention of
      the layer before, from the last prompt token to them [B, N] float32.
    """
    hidden, sequence, _ = embed(llava, prompt)
    flow = _Watch(llava, sequence)
    run_layers(llava.decoder.layers[:LAYERS], hidden, flow)
    return flow.found


def of_scenes(checkpoint: Checkpoint, scenes: int) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Show the first held-out scenes to a model, the families of questions in turn.

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
