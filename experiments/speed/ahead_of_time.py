"""Compile for a target that is not here, in a process of its own: plugins and flags of one never disturb the other.

`python -m experiments.speed.ahead_of_time` reads one JSON object, a `Job`, and answers with one per line: what was
compiled, as it is done, or what is wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.speed import capacity, inspection, presets, programs, targets
from experiments.speed import roofline as bounds
from models.engine import plan
from models.errors import CommandError, one_line
from models.families.llava import LlavaConfig
from tokencarve_jax.scores.information import DEFAULT

_ROOT = Path(__file__).parents[2]
SIDES = ("uncompressed", "carved")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is compiled; JSON types.

    Attributes:
      target: as `--target` names it.
      preset: names the sizes of the model.
      dtype: of weights and hidden states.
      keep: fraction or count of the visual tokens that are left, from layer 2 on (of two layers: from layer 1 on).
      information: route to TokenCarve's score.
      mesh: chips along "data" and along "model", or None for one chip.
      batch: rows; several are compiled one after the other.
      prompt_tokens: of text.
      new_tokens: to decode.
      layers: at most so many in the decoder, and in the tower up to its features; None: the preset's.
      sides: of `SIDES`, what is compiled.
      decoding: compile decoding too.
      largest_batch: also find how many rows fit.
    """

    target: str
    preset: str
    dtype: str = "bfloat16"
    keep: float | int = 0.222
    information: str = DEFAULT
    mesh: tuple[int, int] | None = None
    batch: tuple[int, ...] = (1,)
    prompt_tokens: int = 76
    new_tokens: int = 64
    layers: int | None = None
    sides: tuple[str, ...] = SIDES
    decoding: bool = True
    largest_batch: bool = False

    @property
    def config(self) -> LlavaConfig:
        """The preset, with no more than so many layers."""
        config = presets.PRESETS[self.preset]
        if self.layers is None:
            return config
        text = dataclasses.replace(config.text, num_layers=min(self.layers, config.text.num_layers))
        vision = dataclasses.replace(config.vision, num_layers=min(self.layers + 1, config.vision.num_layers))
        return dataclasses.replace(config, text=text, vision=vision, feature_layers=(vision.num_layers - 1,))

    @property
    def cut_layer(self) -> int:
        """At whose entry the tokens are cut."""
        return min(plan.TOKENCARVE_LAYER, self.config.text.num_layers - 1)

    @property
    def cuts(self) -> plan.Schedule:
        """With counts."""
        config = self.config
        cut = (self.cut_layer, presets.tokencarve(self.information), self.keep)
        cuts = plan.parse((cut,), num_layers=config.text.num_layers)
        return plan.resolve(cuts, config.tokens_per_image).cuts


def run(job: Job) -> Iterator[dict[str, Any]]:
    """Have a process compile it.

    Yields:
      One dictionary per batch and side, see `_compiled`; where asked, one with the "largest" batch of each side.

    Raises:
      CommandError: what is wrong, in one line.
    """
    targets.place(job.target)  # what can be said at once
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.speed.ahead_of_time"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=os.environ | targets.ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        process.stdin.flush()  # and left open: its end tells the process that nobody waits any more
        for line in process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise CommandError(answer["error"])
            yield answer
        if process.wait():
            raise CommandError(f"the compiler's process ended with status {process.returncode}; its words are above")
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _compiled(job: Job, side: str, batch: int) -> dict[str, Any]:
    """What one side comes to: figures of both programs, or that it does not fit, and the bounds."""
    place, config = targets.place(job.target), job.config
    mesh = job.mesh or (1, 1)
    cuts = job.cuts if side == "carved" else ()
    length = job.prompt_tokens + config.tokens_per_image
    stages = bounds.stages(
        config,
        batch=batch,
        length=length,
        cuts=cuts,
        split=job.cut_layer,
        new_tokens=job.new_tokens,
        itemsize=jnp.dtype(job.dtype).itemsize,
    )
    found: dict[str, Any] = {"batch": batch, "side": side, "bounds": bounds.summary(stages, place.chip, mesh)}
    try:
        pair = _pair(job, cuts, batch)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return found | {"fits": False, "compiler": one_line(error)[:300]}
    parts = {name: inspection.figures(getattr(pair, name)) for name in pair.seconds}
    fits = pair.needed <= place.chip.usable_memory
    return found | {"fits": fits, "needed": pair.needed, "cache": pair.cache_bytes, "seconds": pair.seconds, **parts}


@functools.cache
def _model(job: Job) -> tuple[Any, programs.Placing]:
    devices = targets.place(job.target).devices(job.mesh[0] * job.mesh[1] if job.mesh else 1)
    llava = programs.abstract_llava(job.config, jnp.dtype(job.dtype), devices, job.mesh)
    return llava, programs.placing(llava.mesh, devices[0])


def _pair(job: Job, cuts: plan.Schedule, batch: int) -> programs.Pair:
    llava, placed = _model(job)
    return programs.compile_pair(
        llava,
        batch,
        carve=cuts or None,
        prompt_tokens=job.prompt_tokens,
        new_tokens=job.new_tokens,
        target=targets.place(job.target).chip.target,
        placed=placed,
        decoding=job.decoding,
    )


def _largest(job: Job, side: str) -> int:
    """By the compiler's figures."""
    memory = targets.place(job.target).chip.usable_memory

    def need(batch: int) -> int:
        try:
            return _pair(job, job.cuts if side == "carved" else (), batch).needed
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return 2 * memory

    return capacity.largest(need, memory)


def _end_with_parent() -> None:
    """A compiler at work hears no signal for minutes."""
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """Answer one job."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a plugin prints is not an answer

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    read = json.loads(sys.stdin.readline())
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
    job = Job(**given)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for batch in job.batch:
            for side in job.sides:
                say(_compiled(job, side, batch))
        if job.largest_batch:
            say({"largest": {side: _largest(job, side) for side in job.sides}})
    except CommandError as error:
        say({"error": one_line(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
