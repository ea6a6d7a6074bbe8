"""Calls that measure what cells cost: operations, bytes, and seconds."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.comparison.cells import AtLayer, Line
from experiments.evaluation.batches import Batch
from experiments.evaluation.worker import ModelWorker
from experiments.metrics.latency import timed
from models.engine import prefill as engine
from models.engine.plan import TOWER, Cut, Schedule
from models.engine.visual import projection
from tokencarve_jax import EVIDENCE, Tokens
from tokencarve_jax.methods.tome import block_counts


def lines(worker: ModelWorker) -> tuple[list[Line], list[AtLayer], int]:
    """The lines of a comparison's tables, the protocol's layers, and the length that FLOPs are counted for."""
    comparison: Any = worker.config.comparison
    length = worker.batches.length
    grid = comparison.grid(worker.model.config, length=length)
    return list(grid.lines), list(grid.layers), length


@dataclasses.dataclass(frozen=True)
class Cost:
    """A call: XLA's count of the prefill's operations for one question, and the bytes of its cache."""

    index: int
    cell: str

    def __call__(self, worker: ModelWorker) -> dict[str, Any]:
        """Have a worker do it."""
        sample = worker.questions.sample(self.index)
        inputs = worker.batches.encoder([sample], 1)
        prompt = Batch([self.index], inputs, 0, 0).prompt(worker.model, ())
        given, options = worker.model.arguments(prompt, worker.cells[self.cell].cuts, 0)
        lowered = engine.prefill.lower(worker.model, *given, decode_capacity=0, **options)
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(lowered.out_info.cache.layers))
        return {"xla_flops": (lowered.cost_analysis() or {}).get("flops"), "cache_bytes": held}


@dataclasses.dataclass(frozen=True)
class Time:
    """A call: seconds of each cell's prefill of a batch, and of its compressors alone on one image, a turn for each."""

    indices: Sequence[int]
    cells: Sequence[str]

    def __call__(self, worker: ModelWorker) -> dict[str, dict[str, float]]:
        """Have a worker do it. Compiles where it has not been done before."""
        (batch, *_), _ = worker.batches.read(worker.questions, self.indices)
        if worker.kept.get("timed") != self.cells:
            worker.forget()
            worker.kept["timed"], worker.kept["alone"] = self.cells, {}
        alone: dict[str, Callable[[], float]] = worker.kept["alone"]
        for name in self.cells:
            if name not in alone:
                alone[name] = compressors(worker.model, worker.cells[name].cuts, length=worker.batches.length)
                alone[name]()
                worker.prefill(batch, worker.cells[name], worker.max_new_tokens)
        prefill_s, own_s = {}, {}
        for name in self.cells:
            prefill = functools.partial(worker.prefill, batch, worker.cells[name], worker.max_new_tokens, anew=True)
            _, prefill_s[name] = timed(prefill)
            own_s[name] = alone[name]()
        return {"prefill_s": prefill_s, "own_s": own_s}


def compressors(model: Any, cuts: Schedule, *, length: int) -> Callable[[], float]:
    """What runs the compressors of a schedule (with counts), one after the other, and says how many seconds that took.

    Values are drawn at random: what the methods compute, and how long that takes, is fixed by the shapes. Evidence is
    given to them, and its cost is part of the prefill's time alone.
    """
    calls, left = [], model.config.tokens_per_image
    for cut in cuts:
        for before, after in _steps(cut, left, model.config):
            tokens, evidence = _arrays(model, cut, before, text=length - model.config.tokens_per_image)
            calls.append((cut.compressor, tokens, after, evidence))
        left = int(cut.keep)

    def run() -> float:
        start = time.perf_counter()
        for compressor, tokens, keep, evidence in calls:
            jax.block_until_ready(compressor(tokens, keep=keep, **evidence))
        return time.perf_counter() - start

    return run


def _steps(cut: Cut, left: int, config: Any) -> list[tuple[int, int]]:
    """Tokens before and after each call."""
    if cut.compressor.at != TOWER:
        return [(left, int(cut.keep))]
    after = block_counts(left, int(cut.keep), max(config.feature_layers))
    return list(zip((left, *after[:-1]), after, strict=True))


def _arrays(model: Any, cut: Cut, count: int, *, text: int) -> tuple[Tokens, dict[str, Any]]:
    """One image's tokens, and the evidence about them."""
    vision, decoder = model.config.vision, model.config.text
    dtype = model.decoder.embed_tokens.embedding.dtype
    features = vision.hidden_size * len(model.config.feature_layers)
    width = features if cut.place == TOWER else decoder.hidden_size
    sizes = {
        "N": count,
        "T": text,
        "H": decoder.num_heads,
        "C": features,
        "D": decoder.hidden_size,
        "F": decoder.hidden_size,
    }
    keys = {"tower_keys": vision.hidden_size // vision.num_heads}
    draw, evidence = jax.random.key(0), dict[str, Any]()
    for number, name in enumerate(cut.compressor.evidence):
        if name == "key":
            evidence[name] = jax.random.key(1)
        elif name == "projector":
            evidence[name] = projection(model.projector)
        elif name == "text_valid":
            evidence[name] = jnp.ones((1, text), bool)
        else:
            sizes["d"] = keys.get(name, decoder.num_kv_heads * decoder.head_dim)
            shape = (1, *(sizes[letter] for letter in EVIDENCE[name]))
            array = jax.random.normal(jax.random.fold_in(draw, number), shape)
            evidence[name] = jax.nn.softmax(array) if name.endswith("attention") else array.astype(dtype)
    return Tokens.of(jax.random.normal(draw, (1, count, width), dtype)), evidence
