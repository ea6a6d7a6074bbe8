"""Measure prefill, decoding, carving and cache, beside the machine's own speed and beside transformers."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from experiments.core import results
from experiments.core.memory import check_rows
from experiments.metrics import costs, latency
from experiments.speed import capacity, jax_runner, presets, report
from experiments.speed.jax_runner import GenerateCall, JaxRunner
from experiments.speed.torch_client import OutOfMemory, TorchClient
from models.engine.plan import Cut
from models.errors import CommandError
from models.llava import Llava

SIDES = ("uncompressed", "carved")
PROBE_SIZES = {"cpu": (100 * 2**20, 1024), "gpu": (1000 * 2**20, 8192)}  # of the large array, of the square matrices


def _rounds(
    work: dict[str, Callable[[], float] | None], probes: latency.Probes, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each program once per round, and how fast the machine was in that round."""
    times: dict[str, list[float]] = {name: [] for name, call in work.items() if call}
    times |= {"bandwidth": [], "flops": []}
    for index in tqdm(range(repeats + 1), desc="rounds", unit="round", leave=False):
        taken = {name: call() for name, call in work.items() if call}
        taken["bandwidth"], taken["flops"] = probes.measure()
        if index:  # the first round warms up
            for name, value in taken.items():
                times[name].append(value)
    return times


def _share(work: float, seconds: Sequence[float], per_second: Sequence[float]) -> float:
    """How much of the machine's own speed was used: the median over the rounds."""
    return statistics.median(work / taken / speed for taken, speed in zip(seconds, per_second, strict=True))


def _figures(
    name: str, times: dict[str, list[float]], *, batch: int, steps: int, flops: int, moved: float
) -> dict[str, Any]:
    """One side's times, and which share of the machine's own speed they are.

    `flops` of a prefill and bytes `moved` by a decoding step are those of the whole batch.
    """
    prefill = latency.summary(times[f"{name} prefill"])
    step = latency.summary([seconds / steps for seconds in times[f"{name} decode"]])
    figures = {
        "prefill": prefill,
        "step": step,
        "tokens_per_second": batch / step["median"],
        "prefill_flops": flops,
        "prefill_share": _share(flops, prefill["seconds"], times["flops"]),
        "step_bytes": moved,
        "decode_share": _share(moved, step["seconds"], times["bandwidth"]),
    }
    if called := times.get(f"{name} generate"):
        figures["generate"] = latency.summary(called)
    return figures


def _cell(
    flags: argparse.Namespace,
    llava: Llava,
    batch: int,
    cut: Cut,
    client: TorchClient | None,
    probes: latency.Probes,
) -> dict[str, Any]:
    """All figures of one batch size."""
    config, itemsize = llava.config, jnp.dtype(flags.dtype).itemsize
    length = config.tokens_per_image + flags.prompt_tokens
    check_rows(config, itemsize, batch, length, 1, flags.max_new_tokens)
    ids, pixels = presets.inputs(config, batch=batch, prompt_tokens=flags.prompt_tokens)
    prompt = presets.on_device(llava, ids, pixels)
    if client:
        client.call("inputs", ids=ids, pixels=pixels)
    cuts = {"uncompressed": (), "carved": (cut,)}
    # Carved first: it needs less memory, and a peak that others have raised cannot be read any more.
    runners = {name: JaxRunner(llava, prompt, cuts[name] or None, flags.max_new_tokens) for name in reversed(SIDES)}
    calls = {}
    if flags.generate or (flags.generate is None and jax.default_backend() == "cpu"):
        calls = {name: GenerateCall(llava, ids, pixels, cuts[name] or None) for name in SIDES}
    keep, steps = int(cut.keep), runners["carved"].steps
    work: dict[str, Callable[[], float] | None] = {
        "uncompressed generate": calls.get("uncompressed"),
        "transformers generate": client.generate if client and calls else None,
        "carved generate": calls.get("carved"),
        "uncompressed prefill": runners["uncompressed"].prefill,
        "transformers prefill": client.prefill if client else None,
        "carved prefill": runners["carved"].prefill,
        "carve alone": jax_runner.carving_alone(llava, prompt, keep, flags.information),
        "uncompressed decode": runners["uncompressed"].decode,
        "transformers decode": partial(client.call, "decode", steps=steps) if client else None,
        "carved decode": runners["carved"].decode,
    }
    times = _rounds(work, probes, flags.repeats)

    flops = {name: costs.prefill_flops(config, ids.shape[1], cuts[name]) for name in SIDES}
    sizes = {"batch": batch, "new_tokens": flags.max_new_tokens, "itemsize": itemsize}
    cell: dict[str, Any] = {"batch": batch}
    for name in (*SIDES, "transformers") if client else SIDES:
        model = name if name in runners else "uncompressed"
        moved = costs.step_bytes(config, prompt_slots=runners[model].cache["slots"], **sizes)
        side = cell[name] = _figures(name, times, batch=batch, steps=steps, flops=batch * flops[model], moved=moved)
        if name in runners:
            generate = {"generate": calls[name].compile_seconds} if calls else {}
            compiling = runners[name].compile_seconds | generate
            side |= {"cache": runners[name].cache, "compile": compiling, "peak": runners[name].peak}
        elif client:
            side["peak"] = client.call("peak_memory")
    if client:
        torch = cell["transformers"]
        for name in SIDES:
            cell[name]["faster"] = {
                what: latency.ratios(torch[what]["seconds"], cell[name][what]["seconds"])
                for what in ("generate", "prefill", "step")
                if what in torch
            }
    whole, carved = (runners[name].cache for name in SIDES)
    carved_prefill, alone = cell["carved"]["prefill"]["median"], latency.summary(times["carve alone"])
    cell["speeds"] = {name: times[name] for name in ("bandwidth", "flops")}
    cell["carving"] = {
        "visual": config.tokens_per_image,
        "kept": keep,
        "speed_up": cell["uncompressed"]["prefill"]["median"] / carved_prefill,
        "speed_up_limit": flops["uncompressed"] / flops["carved"],
        "flops": list(flops.values()),
        "alone": alone,
        "share": alone["median"] / carved_prefill,
        "cache_share": carved["prompt"] / whole["prompt"],
        "slots": [whole["slots"], carved["slots"]],
    }
    return cell


def _largest(flags: argparse.Namespace, llava: Llava, cut: Cut) -> dict[str, Any] | None:
    """How many rows fit on each side, where that is asked for."""
    on_cpu = jax.default_backend() == "cpu"
    if flags.largest_batch is None and on_cpu:
        print("\nlargest batch that fits: n/a on a CPU (--largest-batch asks for it all the same)")
    if not (flags.largest_batch or (flags.largest_batch is None and not on_cpu)):
        return None
    sizes = {"prompt_tokens": flags.prompt_tokens, "new_tokens": flags.max_new_tokens, "memory": capacity.limit()}
    carves = {"uncompressed": None, "carved": (cut,)}
    found = {name: capacity.largest_batch(llava, carve=carve, **sizes) for name, carve in carves.items()}
    print("\nlargest batch that fits, " + ", ".join(f"{name}: {one['verified']}" for name, one in found.items()))
    return found


def bench(flags: argparse.Namespace, *, command: str) -> None:
    """Measure, print, and write results.json.

    Raises:
      CommandError: flags do not fit each other, or the model not into memory.
    """
    config = presets.PRESETS[flags.preset]
    for name in ("mesh", "layers"):
        if getattr(flags, name) is not None:
            raise CommandError(f"--{name} is for --target alone")
    if flags.prompt_tokens < 2:
        raise CommandError("a prompt has at least 2 tokens: one before the image, one after it")
    if flags.max_new_tokens < 2:
        raise CommandError("at least 2 new tokens are needed: the first comes out of the prefill")
    cut = presets.tokencarve(config, flags.keep, flags.information)
    # The two processes share one GPU: neither may take all of it beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    path = results.claim(flags.out, "bench", "bench-compiled")
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = results.machine()
    with ExitStack() as stack:
        try:
            with jax_runner.memory_errors():
                llava = presets.random_llava(config, jnp.dtype(flags.dtype))
                size, side = PROBE_SIZES["cpu" if jax.default_backend() == "cpu" else "gpu"]
                probes = latency.Probes(jnp.dtype(flags.dtype), size=size, side=side)
            client = None
            if flags.against:
                client = stack.enter_context(TorchClient(config, dtype=flags.dtype, threads=machine["cores"]))
        except OutOfMemory as error:
            raise CommandError(f"{error} with the weights of {flags.preset} in {flags.dtype} alone") from error
        probes.measure()
        cells = []
        for batch in flags.batch_size:
            try:
                cells.append(_cell(flags, llava, batch, cut, client, probes))
                print("\n" + "\n".join([report.table(cells[-1]), *report.carving(cells[-1])]), flush=True)
            except (OutOfMemory, CommandError) as error:
                cells.append({"batch": batch, "error": str(error)})
                print(f"\nbatch {batch}: {error}", flush=True)
    largest = _largest(flags, llava, cut)
    speeds = {
        "bytes_per_second": probes.bytes_per_second,
        "flops_per_second": probes.flops_per_second,
        "dispatch_seconds": jax_runner.dispatch_seconds(llava),
    }
    print(report.machine_speed(speeds))
    settings = {name: value for name, value in vars(flags).items() if name not in ("target", "mesh", "layers")}
    settings |= {"kept": int(cut.keep), "visual_tokens": config.tokens_per_image, "out": str(flags.out)}
    value = {
        **results.head("bench", command),
        "settings": settings,
        "machine": machine,
        "versions": results.versions(),
        "transformers": client.about if client else None,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(llava)),
        "floors": speeds,
        "largest_batch": largest,
        "cells": cells,
    }
    results.write_json(path, value)
    print(f"\nEvery single time: {path}")
