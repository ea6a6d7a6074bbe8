"""Compile for a target that is not here, in a process of its own: plugins and flags of one never disturb the other."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp

from experiments.speed import capacity, inspection, presets, programs, roofline, targets
from models.engine.plan import Schedule
from models.errors import CommandError, one_line
from models.families.llava import LlavaConfig
from tokencarve_jax.scores.information import DEFAULT

SIDES = ("uncompressed", "carved")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is compiled.

    Attributes:
      target: as `--target` names it.
      preset: names the sizes of the model.
      dtype: of weights and hidden states.
      keep: fraction or count of the visual tokens that are left.
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
        return config if self.layers is None else presets.shallow(config, self.layers)

    def cuts(self, side: str) -> Schedule:
        """Of one side, with counts. Errors as in `presets.tokencarve`."""
        return (presets.tokencarve(self.config, self.keep, self.information),) if side == "carved" else ()


def run(job: Job) -> Iterator[dict[str, Any]]:
    """Have a process compile it.

    Yields:
      One dictionary per batch and side, see `_compiled`; where asked, one with the "largest" batch of each side.

    Raises:
      CommandError: what is wrong, in one line.
    """
    targets.find(job.target)  # what is wrong with it shows at once
    context = multiprocessing.get_context("spawn")  # which reads the environment anew
    answers, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender))
    with _environment():
        process.start()
    sender.close()
    try:
        while (answer := answers.recv()) is not None:
            if isinstance(answer, CommandError):
                raise answer
            yield answer
    except EOFError:
        process.join()
        raise CommandError(
            f"the compiler's process ended with status {process.exitcode}; what it printed is above"
        ) from None
    finally:
        process.kill()
        process.join()
        answers.close()


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """That of a compiling process, while it starts."""
    before = dict(os.environ)
    os.environ.update(targets.ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(job: Job, sender: Connection) -> None:
    """Answer one job, in a process of its own; the last answer is None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process: a compiler looks at no signal
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # what a plugin prints is not part of the tables
    try:
        for batch in job.batch:
            for side in job.sides:
                sender.send(_compiled(job, side, batch))
        if job.largest_batch:
            sender.send({"largest": {side: _largest(job, side) for side in job.sides}})
        sender.send(None)
    except CommandError as error:
        sender.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _compiled(job: Job, side: str, batch: int) -> dict[str, Any]:
    """Figures of both programs of one side, or that it does not fit, and the bounds."""
    chip, config, cuts = targets.find(job.target), job.config, job.cuts(side)
    stages = roofline.stages(
        config,
        batch=batch,
        length=job.prompt_tokens + config.tokens_per_image,
        cuts=cuts,
        split=presets.cut_layer(config),
        new_tokens=job.new_tokens,
        itemsize=jnp.dtype(job.dtype).itemsize,
    )
    found = {"batch": batch, "side": side, "bounds": roofline.summary(stages, chip, job.mesh or (1, 1))}
    pair = _pair(job, side, batch)
    if isinstance(pair, str):
        return found | {"fits": False, "compiler": pair}
    fits = pair.needed <= chip.usable_memory
    parts = {name: inspection.figures(getattr(pair, name)) for name in pair.seconds}
    return found | {"fits": fits, "needed": pair.needed, "cache": pair.cache_bytes, "seconds": pair.seconds, **parts}


def _pair(job: Job, side: str, batch: int) -> programs.Pair | str:
    """Both programs, or the compiler's words where they do not fit."""
    llava, placed = _model(job)
    try:
        return programs.compile_pair(
            llava,
            batch,
            carve=job.cuts(side) or None,
            prompt_tokens=job.prompt_tokens,
            new_tokens=job.new_tokens,
            target=targets.find(job.target).target,
            placed=placed,
            decoding=job.decoding,
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return one_line(error)[:300]


@functools.cache
def _model(job: Job) -> tuple[Any, programs.Placing]:
    devices = targets.devices(job.target, math.prod(job.mesh or (1,)))
    return programs.abstract_llava(job.config, jnp.dtype(job.dtype), devices, job.mesh)


def _largest(job: Job, side: str) -> int:
    """By the compiler's figures."""
    memory = targets.find(job.target).usable_memory

    def need(batch: int) -> int:
        pair = _pair(job, side, batch)
        return 2 * memory if isinstance(pair, str) else pair.needed

    return capacity.largest(need, memory)
