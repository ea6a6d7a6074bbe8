"""`python -m experiments.bench --target=...`: what a compiler says about programs for a device that is not here."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.core import results
from experiments.core.results import format_bytes, format_seconds, format_table
from experiments.speed import ahead_of_time as ahead
from experiments.speed import targets
from experiments.speed.ahead_of_time import Job
from models.errors import CommandError


def _program(figures: dict[str, Any]) -> list[str]:
    """One program in words, in the order of the table's lines."""
    flops = "-" if figures["flops"] is None else f"{figures['flops'] / 1e12:.4g}"
    return [
        format_bytes(figures["needed"]),
        format_bytes(figures["arguments"]),
        format_bytes(figures["temporaries"]),
        flops,
        str(figures["fused_attention"]),
        *(
            str(figures[name])
            for name in ("solver", "loops", "all_reduces", "all_gathers", "fusions", "host", "dynamic")
        ),
    ]


_LINES = (
    "needed, each chip",
    "  of it arguments",
    "  of it temporaries",
    "TFLOP, each chip, by the compiler",
    "fused attention kernels",
    "largest eigen-solver, side",
    "while loops",
    "all-reduces",
    "all-gathers",
    "fusions",
    "calls to the host",
    "dynamic dimensions",
)


def table(found: Sequence[dict[str, Any]], name: str) -> str:
    """What was compiled at one batch size: a column for each side; `name` is "prefill" or "decode"."""
    fitting = [one for one in found if name in one]
    columns = [_program(one[name]) for one in fitting]
    rows = [[line, *cells] for line, *cells in zip(_LINES, *columns, strict=True)]
    rows.append(["compile time here", *(format_seconds(one["seconds"][name]) for one in fitting)])
    return format_table([name, *(one["side"] for one in fitting)], rows)


def lines(one: dict[str, Any], place: targets.Place) -> list[str]:
    """One side in words: whether it fits, its library calls, and the bounds."""
    side, bound = one["side"], one["bounds"]
    if "prefill" in one:
        verdict = "fits" if one["fits"] else "does not fit"
        said = [
            f"{side}: {verdict} ({format_bytes(one['needed'])} of {format_bytes(place.chip.usable_memory)} "
            f"on each chip; cache {format_bytes(one['cache'])})"
        ]
        for name in ("prefill", "decode"):
            calls = ", ".join(f"{call} {count}" for call, count in one[name]["calls"].items())
            said.append(f"  library calls of {name}: {calls or 'none'}")
    else:
        said = [f"{side}: does not fit: {one['compiler']}"]
    stages = ", ".join(f"{row['stage']} {row['ms']:.3g} ms ({row['limit']})" for row in bound["stages"])
    said.append(f"  bound, computed and not measured: prefill {bound['prefill_ms']:.3g} ms at least; {stages}")
    return said


def _show(found: Sequence[dict[str, Any]], place: targets.Place) -> str:
    """All of one batch size."""
    shown = [f"\nbatch {found[0]['batch']}"]
    if any("prefill" in one for one in found):
        shown += [table(found, "prefill"), "", table(found, "decode"), ""]
    shown += [line for one in found for line in lines(one, place)]
    both = {one["side"]: one for one in found}
    if set(both) == set(ahead.SIDES):
        whole, carved = (both[side]["bounds"]["prefill_ms"] for side in ahead.SIDES)
        shown.append(f"carving: the bounds of the prefill are {whole / carved:.2f} x apart")
    return "\n".join(shown)


def job(flags: argparse.Namespace) -> Job:
    """What the flags ask for.

    Raises:
      CommandError: a mesh that is none, a route or depth that does not belong, or `--against`.
    """
    if flags.against:
        raise CommandError("--against is for measuring; with --target nothing is run")
    layers = flags.layers
    if layers is not None and layers < 2:
        raise CommandError("--layers=1: a cut between two layers needs at least 2")
    given = {
        name: getattr(flags, name)
        for name in ("target", "preset", "keep", "information", "prompt_tokens", "new_tokens")
    }
    return Job(
        **given,
        dtype=flags.dtype or "bfloat16",
        mesh=targets.mesh_shape(flags.mesh) if flags.mesh else None,
        batch=tuple(flags.batch),
        layers=layers,
        largest_batch=bool(flags.largest_batch),
    )


def bench(job: Job, out: Path, *, command: str) -> None:
    """Compile, print, and write results.json.

    Args:
      job: what to compile.
      out: folder for results.json.
      command: what is put on record as having asked for it.

    Raises:
      CommandError: no such target, its compiler is missing, or a setting that does not belong.
    """
    place = targets.place(job.target)
    try:
        cuts = job.cuts
    except ValueError as error:
        raise CommandError(f"keep={job.keep}: {error}") from error
    if not cuts:
        raise CommandError(f"keep={job.keep} leaves all visual tokens: nothing to compare")
    out.mkdir(parents=True, exist_ok=True)
    chip = place.chip
    print(
        f"{job.preset} in {job.dtype}, {cuts[0].keep} of {job.config.tokens_per_image} visual tokens kept by "
        f"{cuts[0].compressor.name}, compiled for {job.target}"
        + (f" on a mesh of {job.mesh[0]} x {job.mesh[1]} (data x model)" if job.mesh else "")
        + f"; nothing is run. Published: {chip.flops / 1e12:.4g} TFLOP/s, {chip.bandwidth / 1e9:.4g} GB/s."
    )
    found: list[dict[str, Any]] = []
    about = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": dataclasses.asdict(job) | {"kept": cuts[0].keep, "layers": job.config.text.num_layers},
        "chip": {name: getattr(chip, name) for name in ("platform", "flops", "bandwidth", "memory")},
        "machine": results.host(),
        "versions": results.versions(*targets.PACKAGES[chip.platform]),
        "measured": False,
    }
    largest = None
    with tqdm(total=len(job.batch) * len(job.sides), desc="compiling", unit="side", leave=False) as bar:
        for answer in ahead.run(job):
            if "largest" in answer:
                largest = answer["largest"]
                continue
            found.append(answer)
            # A large model takes minutes a side: what is there is not lost to an interruption.
            results.write_json(out / "results.json", about | {"largest_batch": None, "compiled": found})
            bar.update()
            if len(found) % len(job.sides) == 0:
                bar.write(_show(found[-len(job.sides) :], place))
    if largest:
        print("\nlargest batch that fits, by the compiler: " + ", ".join(f"{k} {v}" for k, v in largest.items()))
        results.write_json(out / "results.json", about | {"largest_batch": largest, "compiled": found})
    print(f"\nEvery figure: {out / 'results.json'}")
