"""What the work costs at least: floating-point operations, bytes, and how fast this machine does either.

Axis letters: B batch, S sequence, N visual tokens, D width, H heads, G key-value heads, d head width, F inner width
of the MLP, V vocabulary, L layers, T cache slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.core.memory import cache_bytes as cache_bytes
from experiments.core.memory import decoder_weights as decoder_weights
from models.engine.plan import TOWER, Schedule, tokens_by_layer
from models.families.llava import LlavaConfig
from tokencarve_jax.methods.tome import block_counts


def tower_flops(config: LlavaConfig, cuts: Schedule = ()) -> int:
    """One image through tower and projector.

    With T = N + 1 tokens of width W and inner width F, patches of P numbers each::

        2 N P W  +  layers * (8 T W^2 + 4 T^2 W + 4 T W F)  +  2 M (W' D + D^2)

    `layers` are those up to the deepest feature layer, M the tokens handed to the decoder, W' their width. A product
    of [a, b] with [b, c] counts 2abc; norms, activations, softmax and biases count nothing. A cut on the tower's output
    shortens M; where tokens merge in the blocks, each block's MLP sees what its attention left, and so do those behind.
    """
    vision, width = config.vision, config.vision.hidden_size
    patch = vision.num_channels * vision.patch_size**2
    total, layers = 2 * vision.num_patches * patch * width, max(config.feature_layers)
    at_tower = [cut for cut in cuts if cut.place == TOWER]
    behind = [vision.num_patches] * layers  # patches behind each block's attention
    if at_tower and at_tower[0].compressor.at == TOWER:
        behind = list(block_counts(vision.num_patches, int(at_tower[0].keep), layers))
    tokens = vision.num_patches + 1
    for left in behind:
        total += 8 * tokens * width**2 + 4 * tokens**2 * width
        tokens = left + 1
        total += 4 * tokens * width * vision.intermediate_size
    handed = int(at_tower[0].keep) if at_tower else config.tokens_per_image
    out = config.text.hidden_size
    return total + 2 * handed * (width * len(config.feature_layers) * out + out**2)


def decoder_flops(config: LlavaConfig, length: int, cuts: Schedule = ()) -> int:
    """One sequence of `length` tokens through decoder and output head.

    A layer over S tokens::

        4 S D H d  +  4 S D G d  +  4 S^2 H d  +  6 S D F

    (queries and output projection; keys and values; scores and their product with the values, without use of
    causality; MLP). The last layer computes keys and values of all S tokens, everything else of the last one only.
    The head adds 2 D V, for the last token only. A cut shortens S from its layer on, and counts nothing itself.
    """
    text, total = config.text, 0
    width, heads, groups = text.hidden_size, text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    visual = config.tokens_per_image
    for layer, left in enumerate(tokens_by_layer(cuts, num_layers=text.num_layers, num_visual=visual)):
        tokens = length - visual + left
        queries = 1 if layer + 1 == text.num_layers else tokens
        total += queries * (4 * width * heads + 4 * tokens * heads + 6 * width * text.intermediate_size)
        total += 4 * tokens * width * groups
    return total + 2 * width * text.vocab_size


def prefill_flops(config: LlavaConfig, length: int, cuts: Schedule = ()) -> int:
    """One image and one sequence of `length` tokens, visual ones included: `tower_flops` + `decoder_flops`."""
    return tower_flops(config, cuts) + decoder_flops(config, length, cuts)


def step_bytes(config: LlavaConfig, *, batch: int, prompt_slots: int, new_tokens: int, itemsize: int) -> float:
    """Bytes that one decoding step moves at least, averaged over the steps that give tokens 2 to `new_tokens`.

    Every weight once, the keys and values so far once per row (those of padding or of room not used yet are not
    counted), and one embedding row and one new key and value per row.
    """
    slots = prompt_slots + new_tokens / 2  # step i of 1..n-1 attends to prompt_slots + i
    row = cache_bytes(config, 1, itemsize)
    return decoder_weights(config) * itemsize + batch * (row * (slots + 1) + config.text.hidden_size * itemsize)


def _best_seconds(program: Callable[..., jax.Array], args: Sequence[Any], repeats: int) -> float:
    jax.block_until_ready(program(*args))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        best = min(best, time.perf_counter() - start)
    return best


class Probes:
    """How fast this machine moves bytes and multiplies, tried once in every round of the benchmark.

    Machines that are shared or hot change their speed from one minute to the next, so what a round takes is held
    against what the same round found.

    Args:
      dtype: of the weights.
      size: numbers in the large array, more than any cache holds.
      side: of the square matrices.

    Attributes:
      bytes_per_second: by probe, the best so far.
      flops_per_second: the best so far.
    """

    def __init__(self, dtype: Any, *, size: int, side: int):
        width = 4096 if size % 4096 == 0 else 1
        ones = jax.jit(lambda: jnp.ones((width, size // width), dtype))()
        square, vector = jnp.ones((side, side), dtype), jnp.ones((1, width), dtype)
        self._flops = 2.0 * side**3
        exact = {"preferred_element_type": jnp.float32}
        self._moves: dict[str, tuple[Callable[..., jax.Array], tuple[Any, ...], float]] = {
            "sum": (jax.jit(lambda x: x.sum(dtype=jnp.float32)), (ones,), ones.nbytes),
            "copy": (jax.jit(lambda x: x + 1), (ones,), 2 * ones.nbytes),
            "matrix-vector product": (jax.jit(lambda v, m: jnp.matmul(v, m, **exact)), (vector, ones), ones.nbytes),
        }
        self._multiply = jax.jit(jnp.matmul), (square, square)
        self.bytes_per_second: dict[str, float] = dict.fromkeys(self._moves, 0.0)
        self.flops_per_second = 0.0

    def measure(self, repeats: int = 3) -> tuple[float, float]:
        """Try each once more.

        Returns:
          Bytes per second, the best of the probes, and floating-point operations per second; of now. The attributes
          keep the best ever seen.
        """
        now = {
            name: moved / _best_seconds(program, args, repeats) for name, (program, args, moved) in self._moves.items()
        }
        self.bytes_per_second = {name: max(rate, now[name]) for name, rate in self.bytes_per_second.items()}
        program, args = self._multiply
        flops = self._flops / _best_seconds(program, args, repeats)
        self.flops_per_second = max(self.flops_per_second, flops)
        return max(now.values()), flops
