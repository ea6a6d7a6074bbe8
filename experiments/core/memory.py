"""What a request takes at least, held against what there is, before the work begins."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax

from experiments.core.results import format_bytes
from models.errors import CommandError

_CGROUP = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is known of a batch before anything is read."""

    new_tokens: int  # of the longest answer
    rows: int = 1
    images: int = 0  # of each row, at least


def check_config(config: Any, itemsize: int, request: Request | None = None) -> None:
    """Decoder and embedding table must fit, and the least that a request can take beside them.

    Raises:
      CommandError: they do not fit.
    """
    needed = (decoder_weights(config) + config.text.vocab_size * config.text.hidden_size) * itemsize
    if (free := available()) is not None and needed > free:
        raise CommandError(f"the weights take {format_bytes(needed)}, and {format_bytes(free)} of memory are free")
    if request:
        length = 1 + request.images * config.tokens_per_image
        check_rows(config, itemsize, request.rows, length, request.images, request.new_tokens, least="at least ")


def check_request(llava: Any, inputs: Any, new_tokens: int, *, times: int = 1) -> None:
    """Prompts and answers must fit into the model's context, and the work into memory.

    Args:
      llava: a loaded model.
      inputs: a batch, as `experiments.core.loading.Inputs`.
      new_tokens: of the longest answer.
      times: the real batch has so many times the rows.

    Raises:
      CommandError: says what fits.
    """
    rows, length = inputs.input_ids.shape
    numbers, _ = llava.config.vision.entry
    pixels = [array.size for array in (inputs.pixel_values, inputs.pixel_values_videos) if array is not None]
    entries = sum(pixels) // numbers
    itemsize = llava.decoder.embed_tokens.embedding[...].dtype.itemsize
    check_rows(llava.config, itemsize, rows * times, length, entries / rows, new_tokens)


def check_context(config: Any, length: int, new_tokens: int, *, least: str = "") -> None:
    """Raise CommandError where a prompt of so many tokens, `least` "at least ", leaves no room for the answer."""
    context = config.text.max_positions
    if length + new_tokens > context:
        fits = f"at most {context - length} new ones fit" if length < context else "none fits"
        raise CommandError(f"the prompt has {least}{length} tokens and the model's context is {context}: {fits}")


def check_rows(
    config: Any, itemsize: int, rows: int, length: int, entries: float, new_tokens: int, *, least: str = ""
) -> None:
    """Raise CommandError where `rows` prompts of `length` tokens and `entries` each fit neither context nor memory."""
    check_context(config, length, new_tokens, least=least)
    needed = request_bytes(config, length=length + new_tokens, entries=entries, itemsize=itemsize)
    free = available()
    if free is not None and needed * rows > free:
        raise CommandError(
            f"{rows} prompts of {least}{length} tokens with room for {new_tokens} more take at least "
            f"{format_bytes(needed * rows)}, and {format_bytes(free)} of memory are free: "
            f"{int(free // needed)} at a time fit"
        )


def request_bytes(config: Any, *, length: int, entries: float, itemsize: int) -> float:
    """What one row takes at least, beside the weights: pixels of its images, cache, the widest layer's activations.

    `entries` are those of `pixel_values`: images or tiles, or Qwen's patches.
    """
    vision, text = config.vision, config.text
    numbers, tokens = vision.entry
    pixels = entries * numbers * 4  # float32, as processors give them
    tower = entries * tokens * (vision.hidden_size + vision.intermediate_size) * itemsize
    layer = length * (2 * text.hidden_size + 2 * text.intermediate_size) * itemsize
    return pixels + cache_bytes(config, length, itemsize) + max(tower, layer)


def cache_bytes(config: Any, slots: int, itemsize: int) -> int:
    """Keys and values of one sequence: 2 L T G d numbers."""
    text = config.text
    return 2 * text.num_layers * slots * text.num_kv_heads * text.head_dim * itemsize


def decoder_weights(config: Any) -> int:
    """Numbers that every decoding step reads: layers, final norm and output head, but not the embedding table."""
    text, width = config.text, config.text.hidden_size
    heads, groups = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    layer = 2 * width * heads + 2 * width * groups + 3 * width * text.intermediate_size + 2 * width
    if text.attention_bias:
        layer += heads + 2 * groups
    if text.output_bias:
        layer += width
    if text.mlp_bias:
        layer += 2 * text.intermediate_size + width
    return text.num_layers * layer + width + width * text.vocab_size


def available() -> int | None:
    """Bytes that this process may still take on the device that JAX uses; None where nobody says."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if {"bytes_limit", "bytes_in_use"} <= stats.keys() else None
    found = [amount for amount in (_free(), _group(), _limit()) if amount is not None]
    return max(0, min(found)) if found else None


def _free() -> int | None:
    """Of the machine."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _group() -> int | None:
    """Of the container."""
    try:
        most, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return most - used + int(lines.get("inactive_file", 0))  # the cache of files gives way
    except (OSError, ValueError):  # "max" is no number
        return None


def _limit() -> int | None:
    """Of `ulimit -v`."""
    if sys.platform != "linux":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    return soft - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
