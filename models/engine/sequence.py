"""The sequence between two layers, and how a cut shortens it.

Axis letters: B batch, S sequence (S' after a cut), N visual tokens, K kept, T text tokens, D width, A position axes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from models.engine.plan import Cut
from models.engine.relevance import QuestionEmbeddings
from models.nn.attention import seen_by_one
from tokencarve_jax.merging import median_positions
from tokencarve_jax.sequence import splice
from tokencarve_jax.tokens import rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CutRecord:
    """What one cut did. A pytree.

    Attributes:
      indices: [B, K] int32, which of the visual tokens before the cut are left.
      assignment: [B, N] int32, which of the K each of them lives on in, or -1.
    """

    indices: jax.Array
    assignment: jax.Array

    @classmethod
    def of_images(cls, indices: jax.Array, assignment: jax.Array) -> CutRecord:
        """The record of whole rows, from indices [B, I, K] and assignment [B, I, N] of their I images."""
        batch, images, kept = indices.shape
        before = jnp.arange(images, dtype=jnp.int32)[None, :, None]
        indices = indices + before * assignment.shape[-1]
        assignment = jnp.where(assignment < 0, -1, assignment + before * kept)
        return cls(indices.reshape(batch, -1), assignment.reshape(batch, -1))

    def reordered(self, order: jax.Array) -> CutRecord:
        """The same with the survivors in another order [B, K]."""
        place = jnp.argsort(order, axis=1).astype(jnp.int32)
        assignment = jnp.where(self.assignment < 0, -1, rows(place, jnp.maximum(self.assignment, 0)))
        return CutRecord(rows(self.indices, order), assignment)


@dataclasses.dataclass(frozen=True)
class Survivors:
    """What a cut leaves of the visual tokens.

    Attributes:
      record: which they are.
      values: [B, K, D].
      sizes: [B, K] float32.
      evidence: arrays [B, K, ...] from the tower, by name and layer.
      deepstack: arrays [B, K, D], see `Sequence`.
    """

    record: CutRecord
    values: jax.Array
    sizes: jax.Array
    evidence: dict[tuple[str, int], jax.Array]
    deepstack: tuple[jax.Array, ...] = ()

    def reordered(self, order: jax.Array) -> Survivors:
        """The same in another order [B, K]."""
        aligned = (self.values, self.sizes, self.evidence, self.deepstack)
        return Survivors(self.record.reordered(order), *jax.tree.map(lambda array: rows(array, order), aligned))


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Everything about a sequence but its hidden states.

    Attributes:
      positions: [B, S, A] int32 rotary positions.
      next_position: [B] int32.
      lengths: [B] int32, real tokens; padding stands behind them.
      visual_slots: [B, N] int32.
      visual_valid: [B, N] bool, False where there is no token.
      border: [B, N] bool, tokens that cuts keep after all others, or None.
      grid: see `Prompt`; None behind a cut.
      sizes: [B, N] float32, how many tokens each visual one stands for.
      weighed: whether sizes count in attention.
      distant: whether distances do too.
      evidence: arrays [B, N, ...] from the tower, by name and layer.
      text: [B, T, D] embeddings of all tokens that are not visual.
      text_relevance: [B, T] float32, each word's share of the visual tokens that enter the decoder, or None.
      questions: as CLIP embeds them, where a cut asks for relevance; `evidence` then has the features for it.
      deepstack: arrays [B, N, D], added to the visual tokens behind decoder layer 0, 1, ... (DeepStack, arXiv
        2406.04334). A cut shortens them with the tokens: those of a group become their mean by sizes, so that where
        the tokens' own mean is by sizes too, merging before an addition is merging behind it. A method with weights or
        values of its own (visionzip, prumerge, sparsevlm) has them for the tokens alone.
    """

    positions: jax.Array
    next_position: jax.Array
    lengths: jax.Array
    visual_slots: jax.Array
    visual_valid: jax.Array
    border: jax.Array | None
    grid: tuple[int, int, int] | None
    sizes: jax.Array
    weighed: bool
    distant: bool
    evidence: dict[tuple[str, int], jax.Array]
    text: jax.Array
    text_relevance: jax.Array | None
    questions: QuestionEmbeddings | None
    deepstack: tuple[jax.Array, ...] = ()

    def deepened(self, index: int, hidden: jax.Array) -> jax.Array:
        """What decoder layer `index` gives, [B, S, D], with what is added behind it."""
        if index >= len(self.deepstack):
            return hidden
        batch = jnp.arange(len(hidden))[:, None]
        added = self.deepstack[index].astype(hidden.dtype)
        return hidden.at[batch, self.visual_slots].add(added, unique_indices=True)

    @property
    def is_real(self) -> jax.Array:
        """[B, S] bool, False for padding."""
        return jnp.arange(self.positions.shape[1])[None] < self.lengths[:, None]

    @property
    def last(self) -> jax.Array:
        """[B, 1] int32, slot of each row's last token."""
        return self.lengths[:, None] - 1

    @property
    def text_slots(self) -> jax.Array:
        """[B, T] int32, ascending: all slots that are not visual."""
        batch, length = jnp.arange(len(self.positions))[:, None], self.positions.shape[1]
        visual = jnp.zeros(self.positions.shape[:2], bool).at[batch, self.visual_slots].set(True)
        text = jnp.argsort(visual, axis=1, stable=True)[:, : length - self.visual_slots.shape[1]]
        return text.astype(jnp.int32)

    @property
    def question(self) -> jax.Array:
        """[B, T] bool, the text tokens after the last visual one."""
        slots = self.text_slots
        behind = slots > jnp.where(self.visual_valid, self.visual_slots, -1).max(-1, keepdims=True)
        return behind & (slots < self.lengths[:, None])

    @property
    def preferred(self) -> jax.Array:
        """[B, N] bool, what compressors get as valid: visual tokens that are not border."""
        return self.visual_valid if self.border is None else self.visual_valid & ~self.border

    @property
    def slot_sizes(self) -> jax.Array | None:
        """[B, S] float32, sizes for attention; None where they do not count."""
        if not self.weighed:
            return None
        ones = jnp.ones(self.positions.shape[:2], jnp.float32)
        batch = jnp.arange(len(ones))[:, None]
        return ones.at[batch, self.visual_slots].set(self.sizes, unique_indices=True)

    def seen_from(self, slot: jax.Array, window: int | None) -> jax.Array:
        """[B, S] bool, which slots the tokens at `slot` [B] attend to: real ones up to their own."""
        seen = self.is_real & (jnp.arange(self.positions.shape[1])[None] <= slot[:, None])
        return seen_by_one(seen, rows(self.positions, slot[:, None])[:, 0, 0], self.positions, window)

    def shorten(
        self, hidden: jax.Array, left: Survivors, cut: Cut, *, images: int
    ) -> tuple[jax.Array, Sequence, jax.Array, CutRecord]:
        """Keep the survivors of a cut, and all tokens that are not visual.

        Args:
          hidden: [B, S, D].
          left: the survivors.
          cut: says how positions and sizes go on.
          images: equal stretches of the survivors that stay apart, one per image of a row, or 1.

        Returns:
          [B, S', D], the shorter sequence, [B, S'] int32, which slot each of its tokens comes from, and the record,
          its survivors in sequence order, padding at the end of each stretch.
        """
        standing = rows(self.visual_slots, left.record.indices)
        hidden, kept = jax.vmap(splice)(hidden, left.values.astype(hidden.dtype), self.visual_slots, standing)
        slots = jax.vmap(jnp.searchsorted)(kept, standing).astype(jnp.int32)
        valid = rows(self.visual_valid, left.record.indices)
        lengths = (self.lengths - self.visual_valid.sum(1) + valid.sum(1)).astype(jnp.int32)
        positions, next_position = rows(self.positions, kept), self.next_position
        if cut.renumbers:
            if positions.shape[-1] > 1:
                raise ValueError(f"cut {cut}: positions of several axes cannot be renumbered; see `plan.for_family`")
            count = jnp.arange(kept.shape[1], dtype=jnp.int32)[None, :, None]
            positions, next_position = jnp.broadcast_to(count, positions.shape), lengths
        elif cut.positions == "median":
            before = rows(self.positions, self.visual_slots)
            medians = median_positions(before, left.record.assignment, slots.shape[1])
            positions = positions.at[jnp.arange(len(kept))[:, None], slots].set(medians, unique_indices=True)
            order = _by_position(positions, lengths)
            hidden, kept, positions = rows(hidden, order), rows(kept, order), rows(positions, order)
            slots = rows(jnp.argsort(order, axis=1).astype(jnp.int32), slots)
            stands = _ascending(slots, images)
            left, slots, valid = left.reordered(stands), rows(slots, stands), rows(valid, stands)
        shorter = dataclasses.replace(
            self,
            positions=positions,
            next_position=next_position,
            lengths=lengths,
            visual_slots=slots,
            visual_valid=valid,
            border=None if self.border is None else rows(self.border, left.record.indices),
            grid=None,
            sizes=left.sizes,
            weighed=self.weighed or cut.weighs,
            distant=self.distant or cut.weighs_distances,
            evidence=left.evidence,
            deepstack=left.deepstack,
        )
        return hidden, shorter, kept, left.record


def _by_position(positions: jax.Array, lengths: jax.Array) -> jax.Array:
    """Slots [B, S] by positions [B, S, A], the first axis first, of equals the earlier slot; padding stays behind."""
    slot = jax.lax.broadcasted_iota(jnp.int32, positions.shape[:2], 1)
    keys = (slot >= lengths[:, None], *jnp.moveaxis(positions, -1, 0), slot)
    return jax.lax.sort(keys, num_keys=len(keys))[-1]


def _ascending(slots: jax.Array, builders: int) -> jax.Array:
    """Order [B, K] of slots [B, K] that ascend in each of the equal stretches."""
    apart = slots.reshape(len(slots), builders, -1)
    first = jnp.arange(builders, dtype=jnp.int32)[None, :, None] * apart.shape[2]
    return (first + jnp.argsort(apart, axis=2)).reshape(slots.shape).astype(jnp.int32)


@jax.jit
def unpacked(values: jax.Array, mask: jax.Array, order: jax.Array) -> jax.Array:
    """Rows [B, S, V] in the order [B, S] that they had before they were packed, and zeros where `mask` is False."""
    return jnp.where(mask[..., None], jnp.take_along_axis(values, order[..., None], axis=1), 0)
