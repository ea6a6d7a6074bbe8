"""Measure speed and memory of prefill, decoding, carving and cache; against the machine and against transformers.

The model has random weights, made on the device: speed does not depend on what they are. Ours and transformers take
turns, call by call, so that whatever else the machine does hits both; transformers lives in a process of its own, with
fused attention (sdpa), the same shapes, the same dtype, and the GPU where PyTorch has one. Prints one table per batch
size and writes results.json with every single time.

On a CPU, or with `--generate`, what a user calls is timed too: `Llava.generate` for one new token, from the arrays of a
processor to the token on the host, with the padding of its length bucket, beside transformers' `generate`.

The cache is counted twice: the slots of the prompt (no padding here), and all that is allocated, with the room for
new tokens, which is rounded up to a multiple of 32.

With `--target` nothing is run or measured: the programs are compiled for an accelerator that need not be there, and
what the compiler says about them is printed beside bounds from the accelerator's published rates.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from experiments.core import cli, results
from experiments.metrics import costs as floors
from experiments.metrics import latency as timing
from experiments.speed import capacity, compiled, presets, report
from experiments.speed import jax_runner as ours
from experiments.speed.settings import Settings, add_flags, measured
from experiments.speed.torch_client import OutOfMemory, Peer
from models.engine import plan
from models.errors import CommandError
from models.llava import Llava

_EXAMPLES = """examples:
  python -m experiments.bench --against=transformers      the small preset, on a CPU: 5 minutes
  python -m experiments.bench --preset=llava-1.5-7b --dtype=bfloat16 --batch 1 8 --against=transformers
                                                          on a GPU of 80 GB
  python -m experiments.bench --preset=llava-1.5-7b --dtype=bfloat16 --new-tokens=1024 --repeats=3
                                                          how many rows fit, with and without carving
  python -m experiments.bench --target=h100 --preset=llava-1.5-7b
                                                          compiled for an H100 that need not be there
  python -m experiments.bench --target=v5e:2x2 --mesh=1x4 --preset=llava-1.5-13b
"""
SIDES = ("uncompressed", "carved")
PROBE_SIZES = {"cpu": (100 * 2**20, 1024), "gpu": (1000 * 2**20, 8192)}  # of the large array, of the square matrices


def _check(settings: Settings) -> plan.Cut:
    """What carving is here: which compressor, and how many visual tokens are kept.

    Raises:
      CommandError: settings that do not belong together.
    """
    config = presets.PRESETS[settings.preset]
    if settings.prompt_tokens < 2:
        raise CommandError("a prompt has at least 2 tokens: one before the image, one after it")
    if settings.new_tokens < 2:
        raise CommandError("at least 2 new tokens are needed: the first comes out of the prefill")
    try:
        asked = (plan.TOKENCARVE_LAYER, presets.tokencarve(settings.information), settings.keep)
        cuts = plan.parse((asked,), num_layers=config.text.num_layers)
        cuts = plan.resolve(cuts, config.tokens_per_image).cuts
    except ValueError as error:
        raise CommandError(f"keep={settings.keep}: {error}") from error
    if not cuts:
        raise CommandError(
            f"keep={settings.keep} leaves all {config.tokens_per_image} visual tokens: nothing to compare"
        )
    return cuts[0]


def _rounds(
    settings: Settings,
    calls: dict[str, ours.Call],
    runners: dict[str, ours.Runner],
    carving: ours.Carving,
    peer: Peer | None,
    probes: Any,
) -> dict[str, list[float]]:
    """Every program once per round, ours and theirs by turns, and how fast the machine was in that round."""
    steps = runners["carved"].steps
    work: dict[tuple[str, str], Any] = {
        ("uncompressed", "generate"): calls.get("uncompressed"),
        ("transformers", "generate"): peer.generate if peer and calls else None,
        ("carved", "generate"): calls.get("carved"),
        ("uncompressed", "prefill"): runners["uncompressed"].prefill,
        ("transformers", "prefill"): peer.prefill if peer else None,
        ("carved", "prefill"): runners["carved"].prefill,
        ("carve", "alone"): carving,
        ("uncompressed", "decode"): runners["uncompressed"].decode,
        ("transformers", "decode"): (lambda: peer.decode(steps)) if peer else None,
        ("carved", "decode"): runners["carved"].decode,
    }
    times: dict[str, list[float]] = {" ".join(name): [] for name, call in work.items() if call}
    times |= {"bandwidth": [], "flops": []}
    for index in tqdm(range(settings.repeats + 1), desc="rounds", unit="round", leave=False):
        for name, call in work.items():
            if call:
                seconds = call()
                if index:  # the first round warms up
                    times[" ".join(name)].append(seconds)
        bandwidth, flops = probes.measure()
        if index:
            times["bandwidth"].append(bandwidth)
            times["flops"].append(flops)
    return times


def _share(work: float, seconds: Sequence[float], per_second: Sequence[float]) -> float:
    """How much of the machine's own speed was used: the median over the rounds."""
    return statistics.median(work / taken / speed for taken, speed in zip(seconds, per_second, strict=True))


def _cell(
    settings: Settings, llava: Llava, batch: int, cut: plan.Cut, peer: Peer | None, probes: Any
) -> dict[str, Any]:
    """All figures of one batch size."""
    config, itemsize = llava.config, jnp.dtype(settings.dtype).itemsize
    ids, pixels = presets.inputs(config, batch=batch, prompt_tokens=settings.prompt_tokens)
    prompt = presets.on_device(llava, ids, pixels)
    if peer:
        peer.inputs(ids, pixels)
    # Carved first: it needs less memory, and a peak that others have raised cannot be read any more.
    runners = {
        name: ours.Runner(llava, prompt, (cut,) if name == "carved" else None, settings.new_tokens)
        for name in reversed(SIDES)
    }
    calls = {}
    if settings.generate or (settings.generate is None and jax.default_backend() == "cpu"):
        calls = {name: ours.Call(llava, ids, pixels, (cut,) if name == "carved" else None) for name in SIDES}
    keep = int(cut.keep)
    carving = ours.Carving(llava, prompt, keep, settings.information)
    times = _rounds(settings, calls, runners, carving, peer, probes)

    cell: dict[str, Any] = {"batch": batch}
    flops = {"uncompressed": floors.prefill_flops(config, ids.shape[1])}
    flops["carved"] = floors.prefill_flops(config, ids.shape[1], (cut,))
    for name in (*SIDES, *(("transformers",) if peer else ())):
        prefill = timing.summary(times[f"{name} prefill"])
        step = timing.summary([seconds / runners["carved"].steps for seconds in times[f"{name} decode"]])
        side: dict[str, Any] = {"prefill": prefill, "step": step, "tokens_per_second": batch / step["median"]}
        runner = runners["uncompressed" if name == "transformers" else name]
        side["prefill_flops"] = batch * flops.get(name, flops["uncompressed"])
        side["prefill_share"] = _share(side["prefill_flops"], prefill["seconds"], times["flops"])
        slots = runner.cache["slots"]
        side["step_bytes"] = floors.step_bytes(
            config, batch=batch, prompt_slots=slots, new_tokens=settings.new_tokens, itemsize=itemsize
        )
        side["decode_share"] = _share(side["step_bytes"], step["seconds"], times["bandwidth"])
        if calls:
            side["generate"] = timing.summary(times[f"{name} generate"])
        if name == "transformers":
            side["peak"] = peer.peak_memory() if peer else None
        else:
            side |= {"cache": runner.cache, "compile": dict(runner.compile_seconds), "peak": runner.peak}
            if calls:
                side["compile"]["generate"] = calls[name].compile_seconds
        cell[name] = side
    alone = timing.summary(times["carve alone"])
    cell["speeds"] = {name: times[name] for name in ("bandwidth", "flops")}
    cell["carving"] = {
        "visual": config.tokens_per_image,
        "kept": keep,
        "speed_up": cell["uncompressed"]["prefill"]["median"] / cell["carved"]["prefill"]["median"],
        "speed_up_limit": flops["uncompressed"] / flops["carved"],
        "flops": [flops["uncompressed"], flops["carved"]],
        "alone": alone,
        "share": alone["median"] / cell["carved"]["prefill"]["median"],
        "cache_share": runners["carved"].cache["prompt"] / runners["uncompressed"].cache["prompt"],
        "slots": [runners[name].cache["slots"] for name in SIDES],
    }
    return cell


def _largest(settings: Settings, llava: Llava, cut: plan.Cut) -> dict[str, Any]:
    memory = capacity.limit()
    return {
        name: capacity.largest_batch(
            llava,
            carve=(cut,) if name == "carved" else None,
            prompt_tokens=settings.prompt_tokens,
            new_tokens=settings.new_tokens,
            memory=memory,
        )
        for name in SIDES
    }


def bench(settings: Settings, *, command: str) -> None:
    """Measure, print, and write results.json.

    Args:
      settings: what to measure.
      command: what is put on record as having asked for it.

    Raises:
      CommandError: the settings do not fit each other, or the model not into memory.
    """
    cut = _check(settings)
    # The two processes share one GPU: neither may take all of it beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    config, on_cpu = presets.PRESETS[settings.preset], jax.default_backend() == "cpu"
    settings.out.mkdir(parents=True, exist_ok=True)
    about = results.machine()
    with ExitStack() as stack:
        try:
            with ours.memory_errors():
                llava = presets.random_llava(config, jnp.dtype(settings.dtype))
                size, side = PROBE_SIZES["cpu" if on_cpu else "gpu"]
                probes = floors.Probes(jnp.dtype(settings.dtype), size=size, side=side)
            peer = None
            if settings.against:
                peer = stack.enter_context(Peer(config, dtype=settings.dtype, threads=about["cores"]))
        except OutOfMemory as error:
            raise CommandError(f"{error} with the weights of {settings.preset} in {settings.dtype} alone") from error
        probes.measure()
        cells = []
        for batch in settings.batch:
            try:
                cells.append(_cell(settings, llava, batch, cut, peer, probes))
                shown = [report.table(cells[-1]), *report.lines(cells[-1])]
            except OutOfMemory as error:
                cells.append({"batch": batch, "error": str(error)})
                shown = [f"batch {batch}: {error}"]
            print("\n" + "\n".join(shown), flush=True)
    largest = None
    if settings.largest_batch or (settings.largest_batch is None and not on_cpu):
        largest = _largest(settings, llava, cut)
        print("\nlargest batch that fits, " + ", ".join(f"{k}: {v['verified']}" for k, v in largest.items()))
    elif settings.largest_batch is None:
        print("\nlargest batch that fits: n/a on a CPU (--largest-batch asks for it all the same)")
    found = {
        "bytes_per_second": probes.bytes_per_second,
        "flops_per_second": probes.flops_per_second,
        "dispatch_seconds": ours.dispatch_seconds(llava),
    }
    print(report.floors(found))
    value = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": dataclasses.asdict(settings)
        | {"kept": int(cut.keep), "visual_tokens": config.tokens_per_image, "out": str(settings.out)},
        "machine": about,
        "versions": results.versions(),
        "transformers": peer.about if peer else None,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(llava)),
        "floors": found,
        "largest_batch": largest,
        "cells": cells,
    }
    results.write_json(settings.out / "results.json", value)
    print(f"\nEvery single time: {settings.out / 'results.json'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, measure, and say what went wrong in one line."""
    parser = cli.Parser(prog="python -m experiments.bench", description=__doc__, epilog=_EXAMPLES)
    add_flags(parser)
    arguments = sys.argv[1:] if argv is None else argv

    def body(flags: argparse.Namespace) -> None:
        command = " ".join(["python -m experiments.bench", *arguments])
        if flags.target:
            compiled.bench(compiled.job(flags), flags.out, command=command)
        else:
            bench(measured(flags), command=command)

    return cli.run(body, parser, argv, keep_compiled=False)


if __name__ == "__main__":
    sys.exit(main())
