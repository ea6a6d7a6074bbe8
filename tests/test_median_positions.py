"""How a cut with median positions puts a sequence in order: of three axes, with padding, text between two images."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from models.engine.plan import Cut
from models.engine.sequence import CutRecord, Sequence, Survivors
from tokencarve_jax import COMPRESSORS

EACH, TEXT, SLOTS, WIDTH = 6, (2, 3, 4), 24, 3  # tokens of an image; text before, between and behind
KEEP = 4
CUT = Cut(1, COMPRESSORS["tokencarve"], KEEP, positions="median")


def make(rng, axes):
    """Two rows: two images; and one, whose second is missing."""
    positions = np.zeros((2, SLOTS, axes), np.int32)
    slots, valid = np.zeros((2, 2 * EACH), np.int32), np.ones((2, 2 * EACH), bool)
    valid[1, EACH:] = False
    for row in range(2):
        at = step = 0
        for part in range(2 + row * -1):
            for _ in range(TEXT[part]):
                positions[row, at], at, step = step, at + 1, step + 1
            grid = np.stack([np.zeros(EACH), np.arange(EACH) // 3, np.arange(EACH) % 3], 1)
            positions[row, at : at + EACH] = step + (grid[:, :axes] if axes == 3 else np.arange(EACH)[:, None])
            slots[row, part * EACH : (part + 1) * EACH] = at + np.arange(EACH)
            at, step = at + EACH, positions[row, at : at + EACH].max() + 1
        for _ in range(TEXT[2]):
            positions[row, at], at, step = step, at + 1, step + 1
        if row == 1:
            slots[row, EACH:] = SLOTS - EACH + np.arange(EACH)
    lengths = np.array([sum(TEXT) + 2 * EACH, TEXT[0] + EACH + TEXT[2]])
    sequence = Sequence(
        positions=jnp.asarray(positions),
        next_position=jnp.asarray(positions.max((1, 2)) + 1),
        lengths=jnp.asarray(lengths),
        visual_slots=jnp.asarray(slots),
        visual_valid=jnp.asarray(valid),
        border=None,
        grid=None,
        sizes=jnp.ones((2, 2 * EACH)),
        weighed=False,
        distant=False,
        evidence={},
        text=jnp.zeros((2, 0, WIDTH)),
        text_relevance=None,
        questions=None,
    )
    return sequence, rng.normal(size=(2, SLOTS, WIDTH)).astype(np.float32)


def decide(rng, valid, stretches):
    """Survivors and groups: within each stretch, valid ones first."""
    each = 2 * EACH // stretches
    indices, assignment = np.zeros((2, stretches * KEEP), np.int32), np.full((2, 2 * EACH), -1)
    for row, part in np.ndindex(2, stretches):
        inside = part * each + np.arange(each)
        order = sorted(inside, key=lambda i: (not valid[row, i], rng.random()))
        own = np.sort(order[:KEEP])
        indices[row, part * KEEP : (part + 1) * KEEP] = own
        real = [part * KEEP + k for k in range(KEEP) if valid[row, own[k]]]
        for i in inside:
            if valid[row, i] and rng.random() < 0.8 and real:
                assignment[row, i] = rng.choice(real)
        assignment[row, own] = part * KEEP + np.arange(KEEP)
    return CutRecord(jnp.asarray(indices), jnp.asarray(assignment.astype(np.int32)))


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("images", [1, 2])
def test_the_sequence_is_in_the_order_of_its_positions(axes, images):
    passed_text = False
    for seed in range(10):
        rng = np.random.default_rng(seed)
        sequence, hidden = make(rng, axes)
        valid = np.asarray(sequence.visual_valid)
        record = decide(rng, valid, images)
        count = images * KEEP
        values = rng.normal(size=(2, count, WIDTH)).astype(np.float32)
        left = Survivors(
            record,
            jnp.asarray(values),
            jnp.asarray(rng.integers(1, 9, (2, count)).astype(np.float32)),
            {("tower_keys", -2): jnp.asarray(values[..., :2] + 1)},
            (jnp.asarray(values + 3),),
        )
        cut = dataclasses.replace(CUT, scope="image" if images == 2 else "joint")
        out, short, kept, after = sequence.shorten(jnp.asarray(hidden), left, cut, images=images)
        out, kept, positions = np.asarray(out), np.asarray(kept), np.asarray(short.positions)
        np.testing.assert_array_equal(short.next_position, sequence.next_position)
        for row in range(2):
            indices, assignment = np.asarray(record.indices[row]), np.asarray(record.assignment[row])
            before, slots = np.asarray(sequence.positions[row]), np.asarray(sequence.visual_slots[row])
            stays = {}  # slot -> position, value
            for k, i in enumerate(indices):
                if valid[row, i]:
                    group = np.sort(before[slots[assignment == k]], axis=0)
                    stays[int(slots[i])] = (*group[(len(group) - 1) // 2],), values[row, k]
            for slot in set(range(sequence.lengths[row])) - set(slots):
                stays[slot] = (*before[slot],), hidden[row, slot]
            order = sorted(stays, key=lambda slot: (stays[slot][0], slot))
            assert short.lengths[row] == len(order)
            assert kept[row, : len(order)].tolist() == order
            assert [(*position,) for position in positions[row, : len(order)]] == [stays[slot][0] for slot in order]
            np.testing.assert_array_equal(out[row, : len(order)], [stays[slot][1] for slot in order])
            passed_text |= sorted(order) != order and images == 1
            # What belongs to a survivor goes with it.
            which = [indices.tolist().index(i) for i in np.asarray(after.indices[row])]
            np.testing.assert_array_equal(short.sizes[row], np.asarray(left.sizes)[row, which])
            np.testing.assert_array_equal(short.visual_valid[row], valid[row, indices[which]])
            np.testing.assert_array_equal(short.evidence["tower_keys", -2][row], values[row, which][:, :2] + 1)
            np.testing.assert_array_equal(short.deepstack[0][row], values[row, which] + 3)
            at = np.asarray(short.visual_slots[row])
            np.testing.assert_array_equal(
                out[row, at][valid[row, indices[which]]], values[row, which][valid[row, indices[which]]]
            )
            assert (np.diff(at.reshape(images, -1), axis=1) > 0).all()
            again = np.asarray(after.assignment[row])
            assert [which[k] if k >= 0 else -1 for k in again] == assignment.tolist()
    assert passed_text or images == 2
