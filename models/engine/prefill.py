"""The prompt as one compiled program, with cuts that shorten the sequence on the way.

    pixels -> tower [cut] -> visual tokens -+
    ids -> embeddings ----------------------+-> [cut] layers [0, L) [cut] layers [L, end) -> logits, short cache

A cut at layer L reads layer L - 1 (for TokenCarve one attention row, the last prompt token's: no attention map is
built), replaces the hidden rows by the survivors, and gathers positions and the caches of all earlier layers with the
same index, so that every layer's cache has one short length; or leaves those caches full where the cut says so.

Axis letters: B batch, S sequence, N visual tokens, K kept, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from models.engine import cuts, evidence
from models.engine.cache import Cache, KeyValue, Segment
from models.engine.embed import embed, tower_key
from models.engine.loop import Flow, run_layers
from models.engine.plan import INPUT, Cut, Plan
from models.engine.prompt import Prompt
from models.engine.sequence import CutRecord, Sequence
from models.engine.sharding import by_batch
from models.engine.target import Target
from models.engine.visual import projection
from models.nn.attention import attend, by_head, log_distances, log_sizes
from models.nn.rotary import Rotation
from tokencarve_jax.methods.sparsevlm import word_shares
from tokencarve_jax.tokens import rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """The state after the prompt. A pytree.

    Attributes:
      logits: [B, V] float32 of the token after the prompt.
      cache: see `Cache`.
      cuts: what each cut did, in order.
    """

    logits: jax.Array
    cache: Cache
    cuts: tuple[CutRecord, ...]


class SegmentBuilder:
    """The layers between two cuts, with their keys and values and what these slots stand for."""

    def __init__(self, sequence: Sequence):
        self.layers: list[KeyValue] = []
        self.positions, self.valid, self.sizes = sequence.positions, sequence.is_real, sequence.slot_sizes
        self.next_position = sequence.next_position
        self.here: jax.Array | None = None  # [B, S] which slot each slot of the current sequence is; None: the same

    def cut(self, kept: jax.Array, *, full: bool) -> None:
        """Keep the slots `kept` [B, S'] of the current sequence."""
        here = kept if self.here is None else rows(self.here, kept)
        if full:
            self.here = here
            return
        self.layers = [(rows(key, here), rows(value, here)) for key, value in self.layers]
        self.positions, self.valid = rows(self.positions, here), rows(self.valid, here)
        self.sizes = None if self.sizes is None else rows(self.sizes, here)
        self.here = None

    def segment(self, decode_capacity: int) -> Segment:
        """The finished segment, with `decode_capacity` free slots."""
        grow, slots = [(0, 0), (0, decode_capacity)], self.valid.shape[1]
        return Segment(
            valid=jnp.pad(self.valid, grow),
            positions=jnp.pad(self.positions, [*grow, (0, 0)]),
            sizes=None if self.sizes is None else jnp.pad(self.sizes, grow, constant_values=1),
            next_position=self.next_position,
            slot=jnp.asarray(slots, jnp.int32),
        )


class Prefill(Flow):
    """A flow that caches and cuts, and in the last layer computes the output of the last token alone."""

    def __init__(self, model: Any, hidden: jax.Array, sequence: Sequence, plan: Plan, kernel: str, key: jax.Array):
        self.model, self.plan, self.key = model, plan, key
        if plan.asks("text_relevance"):
            entering = rows(hidden, sequence.visual_slots)
            shares = word_shares(entering, sequence.visual_valid, sequence.text, sequence.question)
            sequence = dataclasses.replace(sequence, text_relevance=shares)
        self.sequence, self.records = sequence, list[CutRecord]()
        self.builders = [SegmentBuilder(sequence)]
        self.hidden = hidden  # the input of the current layer
        self.trace: evidence.LayerTrace | None = None
        super().__init__(model.decoder, sequence.positions, sequence.lengths, kernel=kernel)
        self.calibrate()

    def calibrate(self) -> None:
        """Set what is added to attention logits in the layers to come: `attend`'s bias."""
        self.bias = log_sizes(self.sequence.slot_sizes)
        if self.sequence.distant and self.bias is not None:
            self.bias = self.bias[:, None] + log_distances(self.at, self.at)

    def known(self, cut: Cut, index: int, hidden: jax.Array) -> dict[str, Callable[[], Any]]:
        """All evidence available at a cut before layer `index`, whose input is `hidden` [B, S, D]: name -> function."""
        sequence = self.sequence
        known = evidence.of_tower(cut, sequence) | evidence.of_text(sequence)
        known["key"] = lambda: jax.random.fold_in(self.key, index)
        known["projector"] = lambda: projection(self.model.projector)
        if self.trace is not None:
            known |= evidence.of_layers(sequence, hidden, self.trace, self.decoder.layers[index], self.decoder)
        return {name: found for name, found in known.items() if name in self.model.evidence}

    def _cut(self, cut: Cut, index: int, hidden: jax.Array) -> jax.Array:
        known = self.known(cut, index, hidden)
        hidden, shorter, kept, record = cuts.apply(cut, hidden, self.sequence, known, images=self.plan.images)
        self.records.append(record)
        for builder in self.builders:
            builder.cut(kept, full=cut.earlier == "full")
        # Otherwise the slots of earlier and later layers stand for the same tokens at the same positions.
        if cut.earlier == "full" or cut.moves or shorter.weighed:
            self.builders.append(SegmentBuilder(shorter))
        self.sequence = shorter
        self.place(shorter.positions, shorter.lengths)
        self.calibrate()
        return hidden

    def before_layer(self, index: int, hidden: jax.Array) -> jax.Array:
        """[B, S, D], shortened where the plan has a cut."""
        cut = self.plan.at(index if index else INPUT)
        self.hidden = hidden if cut is None else self._cut(cut, index, hidden)
        return self.hidden

    def query_tokens(self, index: int, hidden: jax.Array) -> tuple[jax.Array, Rotation]:
        """All tokens; in the last layer the last one alone."""
        if index + 1 < len(self.decoder.layers):
            return hidden, self.at
        cosine, sine = (rows(part, self.sequence.last) for part in self.at)
        return rows(hidden, self.sequence.last), (cosine, sine)

    def attend(self, index: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """Causal attention; keys and values are cached."""
        self.builders[-1].layers.append((key, value))
        self.query = query
        if query.shape[1] == key.shape[1]:
            return attend(query, key, value, mask=self.mask, bias=self.bias, causal=True, kernel=self.kernel)
        seen = self.sequence.seen_from(self.sequence.last[:, 0], self.decoder.config.sliding_window)
        bias = rows(self.bias, self.sequence.last) if self.sequence.distant and self.bias is not None else self.bias
        return attend(query, key, value, mask=seen[:, None], bias=bias)

    def after_layer(self, index: int, added: jax.Array, hidden: jax.Array) -> jax.Array:
        """[B, S, D]; a cut before the next layer may use what is recorded here."""
        layer, key = self.decoder.layers[index], self.builders[-1].layers[-1][0]
        self.trace = evidence.LayerTrace(layer, self.hidden, self.query, key, added)
        return by_batch(self.sequence.deepened(index, hidden), self.model.mesh)

    def cache(self, *, decode_capacity: int, merge: bool) -> Cache:
        """The cache of all layers, with `decode_capacity` free slots."""
        builders = [builder for builder in self.builders if builder.layers]
        arrange = functools.partial(by_head, decode_capacity=decode_capacity, merge=merge)
        return Cache(
            layers=tuple((arrange(key), arrange(value)) for builder in builders for key, value in builder.layers),
            segments=tuple(builder.segment(decode_capacity) for builder in builders),
            segment_of=tuple(number for number, builder in enumerate(builders) for _ in builder.layers),
        )


FlowT = TypeVar("FlowT", bound=Prefill)


def enter(
    model: Any, prompt: Prompt, seed: jax.Array, *, plan: Plan, target: Target, flow: Callable[..., FlowT]
) -> tuple[jax.Array, FlowT, tuple[CutRecord, ...]]:
    """What enters decoder layer 0, before a cut there: hidden states, the flow, and the record of a tower cut."""
    hidden, sequence, records = embed(model, prompt, plan=plan, kernel=target.kernel, key=tower_key(seed))
    return hidden, flow(model, hidden, sequence, plan, target.kernel, jax.random.key(seed)), records


def trace(
    model: Any,
    prompt: Prompt,
    seed: jax.Array,
    *,
    plan: Plan,
    decode_capacity: int,
    target: Target,
    flow: Callable[..., FlowT],
) -> tuple[Prefilled, FlowT]:
    """The body of `prefill`, for compiled programs that record more: what it returns, and the flow after all layers.

    Arguments are those of `prefill`; `flow` is `Prefill` or a subclass.
    """
    hidden, done, records = enter(model, prompt, seed, plan=plan, target=target, flow=flow)
    hidden = run_layers(model.decoder.layers, hidden, done)
    cache = done.cache(decode_capacity=decode_capacity, merge=target.merge_heads and model.mesh is None)
    return Prefilled(model.decoder.logits(hidden[:, 0]), cache, (*records, *done.records)), done


@functools.partial(jax.jit, static_argnames=("plan", "decode_capacity", "target"))
def prefill(
    model: Any, prompt: Prompt, seed: jax.Array, *, plan: Plan, decode_capacity: int, target: Target
) -> Prefilled:
    """Run the prompt, cutting where the plan says.

    Args:
      model: the model.
      prompt: a packed batch.
      seed: uint32 scalar, for compressors that draw.
      plan: cuts with counts, as `plan.resolve` gives. Static.
      decode_capacity: slots to leave in the cache for new tokens. Static.
      target: what the program is compiled for. Static.

    Returns:
      Logits of the next token, the cache, and what the cuts did.
    """
    prefilled, _ = trace(model, prompt, seed, plan=plan, decode_capacity=decode_capacity, target=target, flow=Prefill)
    return prefilled
