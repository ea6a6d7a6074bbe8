"""Training in stages that are seeded, logged, and go on after an interruption as if there had been none."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
import orbax.checkpoint as ocp
from tqdm import tqdm

from experiments.core.journal import OtherRunError, differing
from experiments.core.results import write_text
from experiments.data.scenes import GRID
from models.io.untrusted import read_json

NUM_PATCHES = GRID * GRID
SAVE_EVERY = 100  # steps


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stretch of training with its own learning-rate schedule.

    Attributes:
      name: unique.
      part: "tower" or "decoder".
      steps: how many.
      batch: images a step.
      patches: visual tokens seen of each image; `NUM_PATCHES` means all.
      rate: peak learning rate.
      short: share of questions in their short form at the first and at the last step.
      places: weight of the loss on where each patch is.
      near: weight of the loss on which object is next to each patch; the first such stage begins with one more layer.
      gaps: the decoder sees all visual tokens in one step of so many; in the others it sees them as compressors leave
        them: fewer, in runs, renumbered, pooled. 0 for all in every step.
      turns: whether half of the questions follow another one and its answer.
    """

    name: str
    part: str
    steps: int
    batch: int
    patches: int
    rate: float
    short: tuple[float, float] = (0.0, 0.0)
    places: float = 0.0
    near: float = 0.0
    gaps: int = 0
    turns: bool = False


STAGES = (
    Stage("tower-objects", "tower", 700, 64, 96, 2e-3),
    Stage("tower-places", "tower", 250, 64, 96, 1e-3, places=0.5),
    Stage("tower-whole", "tower", 40, 32, NUM_PATCHES, 3e-4, places=0.5),
    Stage("decoder-short", "decoder", 500, 16, 96, 2e-3, (1.0, 0.5), places=0.05),
    Stage("decoder-objects", "decoder", 1000, 16, 96, 2e-3, (0.5, 0.0), places=0.05),
    Stage("decoder-relations", "decoder", 500, 16, 128, 1.2e-3, places=0.05),
    Stage("decoder-comparisons", "decoder", 380, 16, 128, 1.2e-3, places=0.05),
    Stage("decoder-whole", "decoder", 200, 8, NUM_PATCHES, 6e-4, places=0.05),
    Stage("tower-near", "tower", 400, 32, 224, 1e-3, places=0.5, near=1.0),
    Stage("tower-near-whole", "tower", 40, 32, NUM_PATCHES, 3e-4, places=0.5, near=1.0),
    Stage("decoder-gaps", "decoder", 1000, 16, NUM_PATCHES, 1e-3, places=0.05, gaps=6),
    Stage("decoder-turns", "decoder", 500, 16, NUM_PATCHES, 8e-4, places=0.05, gaps=3, turns=True),
    Stage("decoder-last", "decoder", 200, 16, NUM_PATCHES, 4e-4, places=0.05, gaps=2, turns=True),
)


def scaled(stages: tuple[Stage, ...], factor: float) -> Iterator[Stage]:
    """The same stages with more or fewer steps."""
    for stage in stages:
        yield dataclasses.replace(stage, steps=max(2, round(stage.steps * factor)))


def claim_folder(folder: Path, settings: dict[str, Any], stages: Sequence[Stage]) -> None:
    """Make a folder for a run, or go on in one: scenes, features and checkpoints in it all follow from its settings.

    Raises:
      OtherRunError: the folder holds a run with other settings, whose files would be taken for this one's.
    """
    settings = json.loads(json.dumps(settings | {stage.name: dataclasses.asdict(stage) for stage in stages}))
    path = folder / "settings.json"
    if os.path.lexists(path):
        found = read_json(path, OtherRunError)
        if changed := differing(found, settings):
            raise OtherRunError(f"{folder} holds a run with other settings ({', '.join(changed)})")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1) + "\n")


def make_optimizer(stage: Stage) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping; norms and biases do not decay."""
    warmup = min(100, stage.steps // 5)
    rate = optax.warmup_cosine_decay_schedule(0.0, stage.rate, warmup, stage.steps, 0.02 * stage.rate)
    decay = optax.adamw(rate, b2=0.98, weight_decay=0.02, mask=partial(jax.tree.map, lambda x: x.ndim > 1))
    return optax.chain(optax.clip_by_global_norm(1.0), decay)


LossFn = Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


def run_stage(
    stage: Stage, number: int, model: Any, loss_fn: LossFn, batch_at: Callable[[int], Any], folder: Path, log: Any
) -> Any:
    """Train `model` through one stage, picking up where an earlier run was cut off.

    Args:
      stage: what to do.
      number: of the stage, for the log.
      model: a pytree of weights (an NNX module).
      loss_fn: (model, batch) -> loss, metrics.
      batch_at: step -> batch; the same batch for the same step, so that a resumed run sees the same data.
      folder: where this stage's checkpoints go.
      log: an open text file; one JSON line per 20 steps.

    Returns:
      The trained model.
    """
    optimizer = make_optimizer(stage)
    state = {"model": model, "optimizer": optimizer.init(model)}

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: dict[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["model"], batch)
        updates, moments = optimizer.update(grads, state["optimizer"], state["model"])
        return {"model": optax.apply_updates(state["model"], updates), "optimizer": moments}, {"loss": loss, **metrics}

    structure = jax.tree.structure(state)
    with ocp.CheckpointManager(
        (folder / stage.name).absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
    ) as saved:
        first = saved.latest_step() or 0
        if first:
            leaves = saved.restore(first, args=ocp.args.StandardRestore(jax.tree.leaves(state)))
            state = jax.tree.unflatten(structure, leaves)
        bar = tqdm(range(first, stage.steps), stage.name, total=stage.steps, initial=first, mininterval=2)
        start = time.perf_counter()
        for step in bar:
            state, metrics = step_fn(state, batch_at(step))
            done = step + 1
            if done % 20 == 0 or done == stage.steps:
                row = {name: round(float(value), 4) for name, value in metrics.items()}
                bar.set_postfix(row)
                seconds = round(time.perf_counter() - start, 1)
                log.write(json.dumps({"stage": stage.name, "number": number, "step": done, "s": seconds, **row}) + "\n")
                log.flush()
            if done % SAVE_EVERY == 0 or done == stage.steps:
                saved.save(done, args=ocp.args.StandardSave(jax.tree.leaves(state)))
    return state["model"]
