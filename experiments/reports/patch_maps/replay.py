"""A prefill up to its cut, replayed for many methods in one program: several budgets each, and the ranks they go by.

Axis letters: B batch, K kept, N visual tokens.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from models.engine import cuts
from models.engine.model import VisionLanguageModel
from models.engine.plan import INPUT, TOWER, Cut, Plan, Schedule
from models.engine.prefill import Prefill, trace
from models.engine.prompt import Prompt
from models.engine.sequence import CutRecord
from models.engine.target import Target, target_of
from tokencarve_jax import Tokens
from tokencarve_jax.methods import tokencarve


class Request(NamedTuple):
    """What to replay of a method."""

    cut: Cut  # its only one, behind the tower, with one budget for all images
    budgets: tuple[int, ...] = ()  # visual tokens to leave


Replayed = tuple[dict[int, CutRecord], dict[str, Any]]
"""What each budget leaves; and `attention`, `information` and `fused` ranks, [B, N] from 1 on, where there are any."""


def can_replay(schedule: Schedule) -> bool:
    """Whether a schedule is one cut that can be replayed."""
    return len(schedule) == 1 and schedule[0].place != TOWER and schedule[0].scope != "image"


def has_ranks(schedule: Schedule) -> bool:
    """Whether that cut is TokenCarve's or a variant's; other methods go by other things than these ranks."""
    family = (tokencarve.tokencarve, tokencarve.of_attention_output)
    return can_replay(schedule) and inspect.unwrap(schedule[0].compressor.select) in family


def replay(
    model: VisionLanguageModel, prompt: Prompt, seed: int, requests: Mapping[str, Request]
) -> dict[str, Replayed]:
    """What methods make of a batch.

    Args:
      model: the model.
      prompt: a packed batch.
      seed: of methods that draw, as in the prefill that is replayed.
      requests: of each method, by name.
    """
    target = model.target or target_of(jax.local_devices()[0])
    found = dict[str, Replayed]()
    # The evidence of methods at one place is computed once, and all of it is one program: compiling takes longest.
    for place in dict.fromkeys(one.cut.place for one in requests.values()):
        own = {name: one for name, one in requests.items() if one.cut.place == place}
        plan = Plan(tuple(one.cut for one in own.values()))
        budgets = tuple(one.budgets for one in own.values())
        needed = cuts.without_unused(prompt, plan.cuts)
        made = _replay(model, needed, np.uint32(seed), plan=plan, budgets=budgets, target=target)
        found |= {
            name: (records, jax.tree.map(np.asarray, ranks)) for name, (records, ranks) in zip(own, made, strict=True)
        }
    return found


class _EvidenceOfAll(Prefill):
    """Prefill that also keeps the evidence of all cuts of its plan, which have one place."""

    evidence: list[tuple[Tokens, dict[str, Any]]]

    def before_layer(self, index: int, hidden: jax.Array) -> jax.Array:
        """[B, S, D] behind the first cut."""
        if self.plan.at(index if index else INPUT) is not None:
            self.evidence = [
                cuts.gather_evidence(
                    cut, hidden, self.sequence, self.known(cut, index, hidden), images=self.plan.images
                )
                for cut in self.plan.cuts
            ]
        return super().before_layer(index, hidden)


@functools.partial(jax.jit, static_argnames=("plan", "budgets", "target"))
def _replay(
    model: VisionLanguageModel,
    prompt: Prompt,
    seed: jax.Array,
    *,
    plan: Plan,
    budgets: tuple[tuple[int, ...], ...],
    target: Target,
) -> list[Replayed]:
    _, flow = trace(model, prompt, seed, plan=plan, decode_capacity=0, target=target, flow=_EvidenceOfAll)
    found = list[Replayed]()  # the compiler leaves out all that comes after the cut
    for cut, (tokens, evidence), keeps in zip(plan.cuts, flow.evidence, budgets, strict=True):
        made = {keep: cut.compressor(tokens, keep=keep, **evidence) for keep in keeps}
        ranks = dict[str, Any]()
        if has_ranks((cut,)):
            ranks = tokencarve.ranks(tokens, **{**evidence, **dict(cut.compressor.options)})._asdict()
        found.append(({keep: CutRecord(left.indices, left.assignment) for keep, left in made.items()}, ranks))
    return found
