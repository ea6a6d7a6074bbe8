"""What the work costs at least: floating-point operations and bytes, counted from a model's sizes.

Axis letters: B batch, S sequence, N visual tokens, D width, H heads, G key-value heads, d head width, F inner width
of the MLP, V vocabulary, L layers, T cache slots.
"""

from __future__ import annotations

from experiments.core.memory import cache_bytes as cache_bytes
from experiments.core.memory import decoder_weights as decoder_weights
from models.engine.plan import TOWER, Schedule, tokens_by_layer
from models.families.llava import LlavaConfig
from models.nn.llama_config import TextConfig
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


def tower_weights(config: LlavaConfig) -> int:
    """Numbers of tower and projector: blocks up to the deepest feature layer, patches, positions; matrices alone."""
    vision, out = config.vision, config.text.hidden_size
    width = vision.hidden_size
    blocks = max(config.feature_layers) * (4 * width**2 + 2 * width * vision.intermediate_size)
    embeddings = (vision.num_channels * vision.patch_size**2 + vision.num_patches + 1) * width
    return blocks + embeddings + width * len(config.feature_layers) * out + out**2


def _head_widths(text: TextConfig) -> tuple[int, int]:
    """H d and G d."""
    return text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim


def layer_flops(text: TextConfig, tokens: int, queries: int, pairs: float) -> float:
    """One decoder layer: keys and values of `tokens`, everything else of `queries`, attention of so many `pairs`."""
    width, (heads, groups) = text.hidden_size, _head_widths(text)
    each_query = 4 * width * heads + 6 * width * text.intermediate_size
    return queries * each_query + 4 * pairs * heads + 4 * tokens * width * groups


def tokens_and_queries(config: LlavaConfig, length: int, cuts: Schedule) -> list[tuple[int, int]]:
    """For each decoder layer how many tokens enter it, and for how many it computes more than keys and values."""
    visual, layers = config.tokens_per_image, config.text.num_layers
    left = tokens_by_layer(cuts, num_layers=layers, num_visual=visual)
    tokens = [length - visual + count for count in left]
    return list(zip(tokens, [*tokens[:-1], 1], strict=True))


def decoder_flops(config: LlavaConfig, length: int, cuts: Schedule = ()) -> int:
    """One sequence of `length` tokens through decoder and output head.

    A layer over S tokens::

        4 S D H d  +  4 S D G d  +  4 S^2 H d  +  6 S D F

    (queries and output projection; keys and values; scores and their product with the values, without use of
    causality; MLP). The last layer computes keys and values of all S tokens, everything else of the last one only.
    The head adds 2 D V, for the last token only. A cut shortens S from its layer on, and counts nothing itself.
    """
    text = config.text
    counts = tokens_and_queries(config, length, cuts)
    layers = sum(int(layer_flops(text, tokens, queries, tokens * queries)) for tokens, queries in counts)
    return layers + 2 * text.hidden_size * text.vocab_size


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
