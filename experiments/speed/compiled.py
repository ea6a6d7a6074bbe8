"""`python -m experiments.bench --target=...`: what a compiler says about programs for a device that is not here."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from experiments.core import results
from experiments.core.results import format_bytes, format_seconds, format_table
from experiments.speed import ahead_of_time, targets
from experiments.speed.ahead_of_time import SIDES, Job
from models.errors import CommandError

_ROWS = {
    "needed": "needed, each chip",
    "arguments": "  of it arguments",
    "temporaries": "  of it temporaries",
    "flops": "TFLOP, each chip, by the compiler",
    "fused_attention": "fused attention kernels",
    "solver": "largest eigen-solver, side",
    "loops": "while loops",
    "all_reduces": "all-reduces",
    "all_gathers": "all-gathers",
    "fusions": "fusions",
    "host": "calls to the host",
    "dynamic": "dynamic dimensions",
}


def _figure(name: str, value: Any) -> str:
    if name in ("needed", "arguments", "temporaries"):
        return format_bytes(value)
    if name == "flops":
        return "-" if value is None else f"{value / 1e12:.4g}"
    return str(value)


def table(found: Sequence[dict[str, Any]], program: str) -> str:
    """What was compiled at one batch size, "prefill" or "decode": a column for each side that fits."""
    fitting = [one for one in found if program in one]
    rows = [[label, *(_figure(name, one[program][name]) for one in fitting)] for name, label in _ROWS.items()]
    rows.append(["compile time here", *(format_seconds(one["seconds"][program]) for one in fitting)])
    return format_table([program, *(one["side"] for one in fitting)], rows)


def lines(one: dict[str, Any], usable_memory: int) -> list[str]:
    """One side in words: whether it fits, its library calls, and the bounds."""
    side, bounds = one["side"], one["bounds"]
    if "prefill" in one:
        verdict = "fits" if one["fits"] else "does not fit"
        shown = [
            f"{side}: {verdict} ({format_bytes(one['needed'])} of {format_bytes(usable_memory)} "
            f"on each chip; cache {format_bytes(one['cache'])})"
        ]
        for program in ("prefill", "decode"):
            calls = ", ".join(f"{call} {count}" for call, count in one[program]["calls"].items())
            shown.append(f"  library calls of {program}: {calls or 'none'}")
    else:
        shown = [f"{side}: does not fit: {one['compiler']}"]
    stages = ", ".join(f"{row['stage']} {row['ms']:.3g} ms ({row['limit']})" for row in bounds["stages"])
    shown.append(f"  bound, computed and not measured: prefill {bounds['prefill_ms']:.3g} ms at least; {stages}")
    return shown


def _show(found: Sequence[dict[str, Any]], usable_memory: int) -> str:
    """All of one batch size, both sides."""
    shown = [f"\nbatch {found[0]['batch']}"]
    if any("prefill" in one for one in found):
        shown += [table(found, "prefill"), "", table(found, "decode"), ""]
    shown += [line for one in found for line in lines(one, usable_memory)]
    whole, carved = (one["bounds"]["prefill_ms"] for one in found)
    return "\n".join([*shown, f"carving: the bounds of the prefill are {whole / carved:.2f} x apart"])


def _job(flags: argparse.Namespace) -> Job:
    if flags.against:
        raise CommandError("--against is for measuring; with --target nothing is run")
    if flags.layers == 1:
        raise CommandError("--layers=1: a cut between two layers needs at least 2")
    given = {field.name: getattr(flags, field.name) for field in dataclasses.fields(Job) if field.name in flags}
    mesh = targets.mesh_shape(flags.mesh) if flags.mesh else None
    sizes = {"batch": tuple(flags.batch_size), "new_tokens": flags.max_new_tokens}
    return Job(**given | sizes | {"mesh": mesh, "largest_batch": bool(flags.largest_batch)})


def bench(flags: argparse.Namespace, *, command: str) -> None:
    """Compile, print, and write results.json.

    Raises:
      CommandError: no such target, its compiler is missing, or a flag that does not belong.
    """
    job = _job(flags)
    chip = targets.find(job.target)
    (cut,) = job.cuts("carved")
    path = results.claim(flags.out, "bench-compiled", "bench")
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh = f" on a mesh of {job.mesh[0]} x {job.mesh[1]} (data x model)" if job.mesh else ""
    print(
        f"{job.preset} in {job.dtype}, {cut.keep} of {job.config.tokens_per_image} visual tokens kept by "
        f"{cut.compressor.name}, compiled for {job.target}{mesh}; nothing is run. "
        f"Published: {chip.flops / 1e12:.4g} TFLOP/s, {chip.bandwidth / 1e9:.4g} GB/s."
    )
    found: list[dict[str, Any]] = []
    value: dict[str, Any] = {
        **results.head("bench-compiled", command),
        "settings": dataclasses.asdict(job) | {"kept": cut.keep, "layers": job.config.text.num_layers},
        "chip": {name: getattr(chip, name) for name in ("platform", "flops", "bandwidth", "memory")},
        "machine": results.host(),
        "versions": results.versions(*targets.PACKAGES[chip.platform]),
        "measured": False,
        "largest_batch": None,
        "compiled": found,
    }
    with tqdm(total=len(job.batch) * len(SIDES), desc="compiling", unit="side", leave=False) as bar:
        for answer in ahead_of_time.run(job):
            if "largest" in answer:
                value["largest_batch"] = answer["largest"]
                continue
            found.append(answer)
            results.write_json(path, value)  # a large model takes minutes a side
            bar.update()
            if len(found) % len(SIDES) == 0:
                bar.write(_show(found[-len(SIDES) :], chip.usable_memory))
    if largest := value["largest_batch"]:
        print("\nlargest batch that fits, by the compiler: " + ", ".join(f"{k} {v}" for k, v in largest.items()))
        results.write_json(path, value)
    print(f"\nEvery figure: {path}")
