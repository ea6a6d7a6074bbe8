"""The sequence between two layers, and how a cut shortens it.

Axis letters: B batch, S sequence (S' after a cut), N visual tokens, K kept, T text tokens, D width, A position axes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from models.engine.plan import Cut
from models.layers.attention import seen_by_one
from tokencarve_jax.sequence import splice
from tokencarve_jax.tokens import rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CutRecord:
    """What one cut did; a pytree.

    Attributes:
      indices: [B, K] int32, which of the visual tokens before the cut are left.
      assignment: [B, N] int32, which of the K each of them lives on in, or -1.
    """

    indices: jax.Array
    assignment: jax.Array

    @classmethod
    def of_images(cls, indices: jax.Array, assignment: jax.Array) -> CutRecord:
        """For whole rows, from indices [B, I, K] and assignment [B, I, N] of each of their I images."""
        batch, images, kept = indices.shape
        before = jnp.arange(images, dtype=jnp.int32)[:, None]
        indices = indices + before * assignment.shape[-1]
        assignment = jnp.where(assignment < 0, -1, assignment + before * kept)
        return cls(indices.reshape(batch, -1), assignment.reshape(batch, -1))


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Where everything stands, hidden states apart.

    Attributes:
      positions: [B, S, A] int32 rotary positions.
      next_position: [B] int32.
      lengths: [B] int32, real tokens; padding stands behind them.
      visual_slots: [B, N] int32.
      visual_valid: [B, N] bool, False where there is no token.
      border: [B, N] bool, tokens that cuts take after all others; None: no such.
      sizes: [B, N] float32, how many tokens each visual one stands for.
      weighed: whether sizes count in attention.
      evidence: arrays [B, N, ...] from the tower, by name and layer.
      text: [B, T, D] embeddings of all that is not visual.
    """

    positions: jax.Array
    next_position: jax.Array
    lengths: jax.Array
    visual_slots: jax.Array
    visual_valid: jax.Array
    border: jax.Array | None
    sizes: jax.Array
    weighed: bool
    evidence: dict[tuple[str, int], jax.Array]
    text: jax.Array

    @property
    def is_real(self) -> jax.Array:
        """[B, S] bool, False for padding."""
        return jnp.arange(self.positions.shape[1]) < self.lengths[:, None]

    @property
    def last(self) -> jax.Array:
        """[B, 1] int32, slot of each row's last token."""
        return self.lengths[:, None] - 1

    @property
    def text_slots(self) -> jax.Array:
        """[B, T] int32, ascending: all slots where no visual token stands."""
        batch, length = jnp.arange(len(self.positions))[:, None], self.positions.shape[1]
        visual = jnp.zeros(self.positions.shape[:2], bool).at[batch, self.visual_slots].set(True)
        text = jnp.argsort(visual, axis=1, stable=True)[:, : length - self.visual_slots.shape[1]]
        return text.astype(jnp.int32)

    @property
    def question(self) -> jax.Array:
        """[B, T] bool, the text tokens behind the last visual one."""
        slots = self.text_slots
        behind = slots > jnp.where(self.visual_valid, self.visual_slots, -1).max(-1, keepdims=True)
        return behind & (slots < self.lengths[:, None])

    @property
    def preferred(self) -> jax.Array:
        """[B, N] bool, visual tokens as a compressor is told of them: border is no better than no token."""
        return self.visual_valid if self.border is None else self.visual_valid & ~self.border

    @property
    def slot_sizes(self) -> jax.Array | None:
        """[B, S] float32, sizes as attention weighs them; None where it does not."""
        if not self.weighed:
            return None
        ones = jnp.ones(self.positions.shape[:2], jnp.float32)
        batch = jnp.arange(len(ones))[:, None]
        return ones.at[batch, self.visual_slots].set(self.sizes, unique_indices=True)

    def seen_from(self, slot: jax.Array, window: int | None) -> jax.Array:
        """What the tokens at `slot` [B] look at, behind themselves nothing: [B, S] bool."""
        seen = self.is_real & (jnp.arange(self.positions.shape[1]) <= slot[:, None])
        return seen_by_one(seen, rows(self.positions, slot[:, None])[:, 0, 0], self.positions, window)

    def shorten(
        self, hidden: jax.Array, values: jax.Array, record: CutRecord, sizes: jax.Array, cut: Cut
    ) -> tuple[jax.Array, Sequence, jax.Array]:
        """Leave the survivors of a cut, and everything that is not visual.

        Args:
          hidden: [B, S, D].
          values: [B, K, D], what the survivors are.
          record: which they are.
          sizes: [B, K].
          cut: how positions and sizes go on.

        Returns:
          [B, S', D], the shorter sequence, and [B, S'] int32, which slots are left, ascending.
        """
        standing = rows(self.visual_slots, record.indices)
        hidden, kept = jax.vmap(splice)(hidden, values.astype(hidden.dtype), self.visual_slots, standing)
        valid = rows(self.visual_valid, record.indices)
        lengths = (self.lengths - self.visual_valid.sum(1) + valid.sum(1)).astype(jnp.int32)
        positions, next_position = rows(self.positions, kept), self.next_position
        if cut.renumbers:
            slots = jnp.arange(kept.shape[1], dtype=jnp.int32)[None, :, None]
            positions, next_position = jnp.broadcast_to(slots, positions.shape), lengths
        shorter = Sequence(
            positions=positions,
            next_position=next_position,
            lengths=lengths,
            visual_slots=jax.vmap(jnp.searchsorted)(kept, standing).astype(jnp.int32),
            visual_valid=valid,
            border=None if self.border is None else rows(self.border, record.indices),
            sizes=sizes,
            weighed=self.weighed or cut.weighs,
            evidence={what: rows(array, record.indices) for what, array in self.evidence.items()},
            text=self.text,
        )
        return hidden, shorter, kept
