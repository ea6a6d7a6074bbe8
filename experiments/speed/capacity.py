"""How many rows fit: asked of the compiler, which knows what a program needs before it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from experiments.core import memory as free_memory
from experiments.speed import presets, programs
from experiments.speed.jax_runner import JaxRunner
from experiments.speed.torch_client import OutOfMemory
from models.engine import plan
from models.engine.target import target_of
from models.errors import CommandError
from models.llava import Llava


def limit() -> int:
    """Bytes that programs may use: what is free on the device, and what this process's arrays take.

    Raises:
      CommandError: the system does not report it.
    """
    free = free_memory.available()
    if free is None:
        raise CommandError("--largest-batch: the system does not report how much memory is free; leave it out")
    return free + sum(array.nbytes for array in jax.live_arrays())


def needed(llava: Llava, batch: int, *, carve: plan.Carve, prompt_tokens: int, new_tokens: int) -> int:
    """Bytes that prefill and decoding of `batch` rows need at most, weights included; nothing is run."""
    target = target_of(jax.local_devices()[0])
    pair = programs.compile_pair(
        llava, batch, carve=carve, prompt_tokens=prompt_tokens, new_tokens=new_tokens, target=target
    )
    return pair.needed


def largest(need: Callable[[int], int], memory: int) -> int:
    """The largest batch for which `need(batch) <= memory`; 0 where not even one row fits.

    Memory is nearly a straight line in the batch, so each guess is where the line through two known points meets
    `memory`, held inside the bracket: a few compilations instead of the dozen of a plain bisection.

    >>> largest(lambda batch: 100 + 7 * batch, 1000)
    128
    """
    known = {1: need(1)}
    if known[1] > memory:
        return 0
    low, guess = 1, 8
    high: int | None = None
    while high is None or high - low > 1:
        known[guess] = need(guess)
        if known[guess] <= memory:
            low = guess
        else:
            high = guess
        a, b = sorted(known)[-2:] if high is None else (low, high)
        slope = max((known[b] - known[a]) / (b - a), 1.0)
        guess = max(low + 1, low + int((memory - known[low]) / slope))
        if high is not None:
            guess = min(guess, high - 1)
    return low


def largest_batch(
    llava: Llava, *, carve: plan.Carve, prompt_tokens: int, new_tokens: int, memory: int
) -> dict[str, Any]:
    """The largest batch that the compiler says fits into `memory`, then run; less a twentieth each time it does not.

    Returns:
      "computed" by the compiler's figures, and "verified" by a run.
    """
    need = functools.partial(needed, llava, carve=carve, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    computed = batch = largest(need, memory)
    while batch:
        try:
            ids, pixels = presets.inputs(llava.config, batch=batch, prompt_tokens=prompt_tokens)
            JaxRunner(llava, presets.on_device(llava, ids, pixels), carve, new_tokens, steps=2)
            break
        except OutOfMemory:
            batch -= max(batch // 20, 1)
    return {"computed": computed, "verified": batch, "room_bytes": memory}
