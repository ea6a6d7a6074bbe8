"""Methods told once what they are told in a prefill, and asked for several budgets, and for the ranks that they go by.

Axis letters: B batch, K kept, N visual tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from models.engine import cuts
from models.engine.model import VisionLanguageModel
from models.engine.plan import INPUT, TOWER, Cut, Plan, Schedule
from models.engine.prefill import Prefill, trace
from models.engine.prompt import Prompt
from models.engine.relevance import without_unused_questions
from models.engine.sequence import CutRecord
from models.engine.target import Target, target_of
from tokencarve_jax import Tokens
from tokencarve_jax.methods import tokencarve


@dataclasses.dataclass(frozen=True)
class Request:
    """What a method is asked. Hashable.

    Attributes:
      cut: its only one, behind the tower, with one budget for all images.
      budgets: visual tokens to leave.
    """

    cut: Cut
    budgets: tuple[int, ...] = ()


def can(schedule: Schedule) -> bool:
    """Whether a schedule is one cut that can be replayed."""
    return len(schedule) == 1 and schedule[0].place != TOWER and schedule[0].scope != "image"


def has_ranks(schedule: Schedule) -> bool:
    """Whether that cut is TokenCarve's or a variant's; other methods go by other things than these ranks."""
    family = (tokencarve.tokencarve, tokencarve.of_attention_output)
    return can(schedule) and schedule[0].compressor.select in family


def replay(
    model: VisionLanguageModel, prompt: Prompt, seed: int, asked: Mapping[str, Request]
) -> dict[str, tuple[dict[int, CutRecord], dict[str, np.ndarray]]]:
    """What methods make of a batch.

    Args:
      model: the model.
      prompt: a packed batch.
      seed: of methods that draw, as in the prefill that is replayed.
      asked: of each method, by name.

    Returns:
      By name, what each budget leaves, and the ranks `attention`, `information` and `fused`, [B, N] from 1 on, or
      nothing for methods that have none.
    """
    target = model.target or target_of(jax.local_devices()[0])
    found: dict[str, Any] = {}
    # What methods at one place are told is computed once, and all of it is one program: compiling takes longest.
    for place in dict.fromkeys(one.cut.place for one in asked.values()):
        own = {name: one for name, one in asked.items() if one.cut.place == place}
        plan = Plan(tuple(one.cut for one in own.values()))
        budgets = tuple(one.budgets for one in own.values())
        told = without_unused_questions(prompt, plan.cuts)
        found |= zip(own, _replay(model, told, np.uint32(seed), plan=plan, budgets=budgets, target=target), strict=True)
    return {name: (records, jax.tree.map(np.asarray, ranks)) for name, (records, ranks) in found.items()}


class _Listening(Prefill):
    """Prefill that notes down what the compressors of all cuts of its plan are told, which have one place."""

    heard: list[tuple[Tokens, dict[str, Any]]]

    def before_layer(self, index: int, hidden: jax.Array) -> jax.Array:
        """[B, S, D] behind the first cut."""
        if self.plan.at(index if index else INPUT) is not None:
            self.heard = [
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
) -> list[tuple[dict[int, CutRecord], dict[str, jax.Array]]]:
    _, flow = trace(model, prompt, seed, plan=plan, decode_capacity=0, target=target, flow=_Listening)
    found = []  # the compiler leaves out all that comes after the cut
    for cut, (tokens, evidence), keeps in zip(plan.cuts, flow.heard, budgets, strict=True):
        made = {keep: cut.compressor(tokens, keep=keep, **evidence) for keep in keeps}
        ranks = {}
        if has_ranks((cut,)):
            told: dict[str, Any] = {**evidence, **dict(cut.compressor.options)}
            ranks = tokencarve.ranks(tokens, **told)._asdict()
        found.append(({keep: CutRecord(left.indices, left.assignment) for keep, left in made.items()}, ranks))
    return found
