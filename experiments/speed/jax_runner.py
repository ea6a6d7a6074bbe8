"""The compiled programs that `generate` runs, timed one by one."""

from __future__ import annotations

import contextlib
import functools
import resource
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.metrics.latency import timed
from experiments.speed.torch_client import OutOfMemory
from models.engine import decode, plan, prefill
from models.engine.decode import DECODE_CAPACITY_BUCKET
from models.engine.prompt import Prompt, round_up
from models.llava import Llava
from tokencarve_jax import carve_sequence, last_query_attention


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the runtime's out-of-memory error into `OutOfMemory`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
            raise OutOfMemory("JAX runs out of memory") from None
        raise


def seconds_of(work: Callable[[], Any]) -> float:
    """How long some work takes until its result is there."""
    with memory_errors():
        return timed(work)[1]


def peak_memory() -> int:
    """Bytes at most so far: of the device, or of the whole process where the device keeps no count."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class JaxRunner:
    """Prefill and decoding of one prompt, with or without carving, through the functions that `generate` calls.

    Args:
      llava: the model.
      prompt: on the device.
      carve: as for `generate`.
      new_tokens: how many to decode, the one after the prompt included; the cache has room for them.
      steps: decoding steps where it is not `new_tokens - 1`.

    Attributes:
      steps: decoding steps of one `decode`.
      compile_seconds: by program: the first call less a later one.
      peak: bytes, at most, when both programs had run.
      cache: bytes of keys and values: "prompt" of the prompt's slots, "allocated" with the room for new tokens, and
        how many "slots" the prompt has.
    """

    def __init__(self, llava: Llava, prompt: Prompt, carve: plan.Carve, new_tokens: int, *, steps: int | None = None):
        self._llava = llava
        capacity = round_up(new_tokens, DECODE_CAPACITY_BUCKET)
        self._prefill = functools.partial(llava.prefill, prompt, carve=carve, decode_capacity=capacity)
        self.steps = new_tokens - 1 if steps is None else steps
        self._decode_config = decode.DecodeConfig.of(llava.config)
        self._seed = jax.device_put(np.uint32(0))
        with memory_errors():
            prefilled, first = timed(self._prefill)
        cache = prefilled.cache
        (segment,) = cache.segments
        slots, allocated = int(segment.slot), segment.valid.shape[1]
        self.cache = {"slots": slots, "prompt": cache.nbytes * slots // allocated, "allocated": cache.nbytes}
        del prefilled, cache, segment
        first_decode = self.decode()
        self.compile_seconds = {"prefill": first - self.prefill(), "decode": first_decode - self.decode()}
        self.peak = peak_memory()

    def prefill(self) -> float:
        """Seconds of one prefill, until logits and cache are there."""
        return seconds_of(self._prefill)

    def decode(self) -> float:
        """Seconds of the decoding loop, after an untimed prefill."""
        with memory_errors():
            prefilled: prefill.Prefilled = self._prefill()
            first = decode.first_token(prefilled.logits, self._seed, decode_config=self._decode_config)
            state = jax.block_until_ready(decode.Generating(prefilled.cache, *first))
            del prefilled
            limit, size = jax.device_put(np.int32(self.steps)), round_up(self.steps, DECODE_CAPACITY_BUCKET)
            (_, written, _), seconds = timed(
                lambda: decode.decode(self._llava, state, limit, size=size, decode_config=self._decode_config)
            )
        if int(written) != self.steps:
            raise RuntimeError(f"decoded {int(written)} tokens instead of {self.steps}")
        return seconds


class GenerateCall:
    """What a user calls for one new token: `Llava.generate`, from a processor's arrays to the token on the host.

    `compile_seconds` is the first call less a later one.
    """

    def __init__(self, llava: Llava, ids: np.ndarray, pixels: np.ndarray, carve: plan.Carve):
        self._call = lambda: np.asarray(llava.generate(ids, pixels, max_new_tokens=1, carve=carve))
        self.compile_seconds = self() - self()

    def __call__(self) -> float:
        """Seconds of one call."""
        return seconds_of(self._call)


def carving_alone(llava: Llava, prompt: Prompt, keep: int, information: str) -> Callable[[], float]:
    """What a cut adds to a prefill: the attention row and `carve_sequence`, on the shapes of the real thing.

    Returns a function that carves once, compiled already, and gives the seconds.
    """
    text = llava.config.text
    batch, size = prompt.input_ids.shape
    dtype = llava.decoder.embed_tokens.embedding.dtype
    hidden_key, query_key, keys_key = jax.random.split(jax.random.key(1), 3)
    hidden = jax.random.normal(hidden_key, (batch, size, text.hidden_size), dtype)
    query = jax.random.normal(query_key, (batch, text.num_heads, text.head_dim), dtype)
    keys = jax.random.normal(keys_key, (batch, size, text.num_kv_heads, text.head_dim), dtype)
    slots, valid = prompt.visual_slots, jnp.asarray(prompt.visual_valid)

    @jax.jit
    def carve(hidden: jax.Array, query: jax.Array, keys: jax.Array, slots: jax.Array, valid: jax.Array) -> Any:
        attention = last_query_attention(query, keys, mask=jnp.ones(hidden.shape[:2], bool))
        return carve_sequence(hidden, attention, slots, keep=keep, information=information, valid=valid)

    call = functools.partial(seconds_of, lambda: carve(hidden, query, keys, slots, valid))
    call()
    return call


def dispatch_seconds(llava: Llava, calls: int = 20) -> float:
    """Median time that a compiled program of this model takes which computes nothing: the cost of calling."""
    nothing = jax.jit(lambda model, x: x + 1)
    x = jnp.zeros(())
    return statistics.median([timed(lambda: nothing(llava, x))[1] for _ in range(calls + 1)][1:])
