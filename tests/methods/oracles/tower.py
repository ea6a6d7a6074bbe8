"""Methods that read the vision tower, in float64 NumPy and plain loops, written from their descriptions.

Each takes one set: values [N, D], usable [N] bool (the others leave first), K, sizes, the order in which the others
would fill up, and evidence. It gives indices, assignment and rows, and the margin of its closest decision: by how much
a number would have to change to decide another way.
"""

import itertools
import math

import numpy as np


class Margin:
    """Keeps the smallest difference that a decision hung on."""

    def __init__(self):
        self.smallest = math.inf

    def note(self, difference):
        self.smallest = min(self.smallest, abs(float(difference)))

    def top(self, scores, count, scale=1.0):
        """The `count` candidates with the highest scores, best first; `scores` is a dictionary."""
        order = sorted(scores, key=lambda i: (-scores[i], i))
        if 0 < count < len(order):
            self.note((scores[order[count - 1]] - scores[order[count]]) * scale)
        return order[:count]

    def sort(self, scores):
        """All candidates, best first, where every place matters."""
        order = sorted(scores, key=lambda i: (-scores[i], i))
        for i, j in itertools.pairwise(order):
            self.note(scores[i] - scores[j])
        return order


# Attention enters as it is, in float32, and so the smallest difference between two of them decides for good.
EXACT = 1e12


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return [row / (np.linalg.norm(row) or 1.0) for row in rows]


def finish(values, stands, joins, changed=None):
    """Rows in index order, from `joins`: {token: the standing token it joins}."""
    indices = sorted(stands)
    row = {i: k for k, i in enumerate(indices)}
    assignment = [row.get(n, row[joins[n]] if n in joins else -1) for n in range(len(values))]
    out = np.array([values[i] if not changed or i not in changed else changed[i] for i in indices])
    return indices, assignment, out


def filled(usable, stands, keep, spare):
    """With what is not usable, in the order of `spare`, where the usable tokens are fewer than K."""
    rest = [i for i in spare if not usable[i] and i not in stands]
    return [*stands, *rest[: max(0, keep - len(stands))]]


def tome(values, usable, keep, sizes, spare, *, tower_keys):
    margin, values, key = Margin(), np.asarray(values, np.float64), unit(np.where(usable[:, None], tower_keys, 0))
    order = [i for i in range(len(values)) if usable[i]]
    set_a, set_b = order[0::2], order[1::2]
    merging = max(0, len(order) - keep)
    closest, partner = {}, {}
    for a in set_a if set_b else []:
        similarity = {b: float(key[a] @ key[b]) for b in set_b}
        partner[a] = min(set_b, key=lambda b: (-similarity[b], b))
        closest[a] = similarity[partner[a]]
    joins = {a: partner[a] for a in margin.top(closest, merging)}
    for a in joins:
        for b in set_b:
            if b != joins[a]:
                margin.note(closest[a] - float(key[a] @ key[b]))
    stands = filled(usable, [i for i in order if i not in joins], keep, spare)
    means = {}
    for b in set(joins.values()):
        group = [b, *(a for a in joins if joins[a] == b)]
        means[b] = sum(sizes[i] * values[i] for i in group) / sum(sizes[i] for i in group)
    return *finish(values, stands, joins, means), margin.smallest


def visionzip(values, usable, keep, sizes, spare, *, class_attention, tower_keys):
    margin, values, key = Margin(), np.asarray(values, np.float64), unit(np.where(usable[:, None], tower_keys, 0))
    contextual = keep * 10 // 64
    attention = {i: float(class_attention[i]) for i in range(len(values)) if usable[i]}
    dominant = margin.top(attention, keep - contextual, EXACT)
    others = [i for i in range(len(values)) if usable[i] and i not in dominant]
    targets = []
    if contextual:
        stride = max(1, len(others) // contextual)
        targets = others[::stride][:contextual]
    joins = {}
    for i in others:
        if targets and i not in targets:
            joins[i] = margin.top({t: float(key[i] @ key[t]) for t in targets}, 1)[0]
    changed = {}
    for t in targets:
        group = [i for i in joins if joins[i] == t]
        if group:
            changed[t] = values[t] + sum(sizes[i] * values[i] for i in group) / sum(sizes[i] for i in group)
    stands = filled(usable, [*dominant, *targets], keep, spare)
    return *finish(values, stands, joins, changed), margin.smallest
