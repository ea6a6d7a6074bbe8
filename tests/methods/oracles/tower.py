"""Methods that read the vision tower, in float64 NumPy and plain loops, written from their descriptions.

Each takes one set: values [N, D], valid and usable [N] bool (what is not usable leaves first), K, sizes and evidence.
It gives indices, assignment and rows, and the margin of its closest decision: by how much a number would have to change
to decide another way.
"""

import fractions
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


def filled(stands, keep, valid, usable):
    """Where the usable tokens are fewer than K: with the valid ones that are not, then with padding."""
    rest = sorted((i for i in range(len(usable)) if not usable[i]), key=lambda i: (not valid[i], i))
    return [*stands, *rest[: max(0, keep - len(stands))]]


def tome(values, valid, usable, keep, sizes, *, tower_keys):
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
    stands = filled([i for i in order if i not in joins], keep, valid, usable)
    means = {}
    for b in set(joins.values()):
        group = [b, *(a for a in joins if joins[a] == b)]
        means[b] = sum(sizes[i] * values[i] for i in group) / sum(sizes[i] for i in group)
    return *finish(values, stands, joins, means), margin.smallest


def visionzip(values, valid, usable, keep, sizes, *, class_attention, tower_keys):
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
    stands = filled([*dominant, *targets], keep, valid, usable)
    return *finish(values, stands, joins, changed), margin.smallest


def fastervlm(values, valid, usable, keep, sizes, *, class_attention):
    margin = Margin()
    stands = margin.top({i: float(class_attention[i]) for i in range(len(values)) if usable[i]}, keep, EXACT)
    return *finish(values, filled(stands, keep, valid, usable), {}), margin.smallest


def vispruner(values, valid, usable, keep, sizes, *, class_attention, tower_features):
    margin, feature = Margin(), unit(np.where(usable[:, None], tower_features, 0))
    order = margin.sort({i: EXACT * float(class_attention[i]) for i in range(len(values)) if usable[i]})
    stands, line = order[: keep // 2], order[keep // 2 :]
    diverse = keep - keep // 2
    while len(line) > diverse:
        leaving = min(8, len(line) - diverse, len(line) // 2)
        even, odd = line[::2], line[1::2]
        closest = {i: max(float(feature[i] @ feature[j]) for j in odd) for i in even}
        line = margin.sort(closest)[leaving:] + odd
    return *finish(values, filled([*stands, *line], keep, valid, usable), {}), margin.smallest


def hiprune(values, valid, usable, keep, sizes, *, middle_attention, global_attention):
    margin = Margin()
    image = [i for i in range(len(values)) if valid[i]]  # nearly square
    width = max(1, round(math.sqrt(len(image))))
    middle = {i: float(middle_attention[i]) for i in image if usable[i]}
    deep = {i: float(global_attention[i]) for i in image if usable[i]}
    anchors = margin.top(middle, min(round(keep * 0.1 / 5), keep // 5), EXACT)
    stands = list(anchors)
    for anchor in anchors:
        for step in (-1, 1, -width, width):
            beside = image[min(max(image.index(anchor) + step, 0), len(image) - 1)]
            if usable[beside]:
                stands.append(beside)
    stands = sorted(set(stands))
    stands += margin.top({i: deep[i] for i in deep if i not in stands}, keep - len(stands), EXACT)
    return *finish(values, filled(stands, keep, valid, usable), {}), margin.smallest


def holov(values, valid, usable, keep, sizes, *, class_attention):
    margin, unit_value = Margin(), unit(np.where(usable[:, None], values, 0))
    order = [i for i in range(len(values)) if usable[i]]
    crops, start = [], 0
    for number in range(16):
        size = len(order) // 16 + (number < len(order) % 16)
        if size:
            crops.append(order[start : start + size])
        start += size
    scores = []
    for crop in crops:
        told = [1e3 * float(class_attention[i]) for i in crop]
        if len(crop) == 1:
            scores.append(told[0])
            continue
        similarity = np.array([[0.0 if i == j else float(unit_value[i] @ unit_value[j]) for j in crop] for i in crop])
        mean = similarity.sum(1) / (len(crop) - 1)
        variance = ((similarity - mean[:, None]) ** 2).sum(1) / (len(crop) - 1)
        scale = np.mean(np.abs(told)) / (np.mean(np.abs(variance)) + 1e-6)
        scores.append(np.mean(told + 0.09 * variance * scale))
    total = sum(scores) + 1e-6
    shares = {c: scores[c] / total for c in range(len(crops))}
    quotas = {c: math.floor(shares[c] * keep) for c in shares}
    for c in shares:
        margin.note(shares[c] - quotas[c] / keep)
        margin.note(shares[c] - (quotas[c] + 1) / keep)
    for c in margin.top(shares, min(keep - sum(quotas.values()), len(crops))):
        quotas[c] += 1
    stands = []
    for c, crop in enumerate(crops):
        stands += margin.top({i: float(class_attention[i]) for i in crop}, quotas[c], EXACT)
    rest = {i: float(class_attention[i]) for i in order if i not in stands}
    stands += margin.top(rest, min(keep - len(stands), len(rest)), EXACT)
    return *finish(values, filled(stands, keep, valid, usable), {}), margin.smallest


def prumerge(values, valid, usable, keep, sizes, *, class_attention, tower_keys, spatial=False):
    margin, values, key = Margin(), np.asarray(values, np.float64), unit(np.where(usable[:, None], tower_keys, 0))
    attention = {i: float(class_attention[i]) for i in range(len(values)) if usable[i]}
    on_raster = (keep - 1) * 3 // 4 if spatial else 0
    kept = margin.top(attention, keep - 1 - on_raster, EXACT)
    others = [i for i in attention if i not in kept]
    if len(others) <= on_raster:
        kept += others
    else:
        kept += [others[j * len(others) // on_raster] for j in range(on_raster)]
    pruned = {i: attention[i] for i in attention if i not in kept}
    changed, joins, stands = {}, {}, list(kept)
    for i in kept:
        near = margin.top({j: float(key[i] @ key[j]) for j in attention if j != i}, 32)
        changed[i] = values[i] + sum(attention[j] * values[j] for j in near)
    if pruned:
        last = margin.top(pruned, 1, EXACT)[0]
        stands.append(last)
        if len(pruned) > 1:
            changed[last] = sum(attention[j] * values[j] for j in pruned)
            joins = {j: last for j in pruned if j != last}
    return *finish(values, filled(stands, keep, valid, usable), joins, changed), margin.smallest


def prumerge_plus(*arguments, **told):
    return prumerge(*arguments, **told, spatial=True)


def trim(values, valid, usable, keep, sizes, *, relevance_dot):
    margin, values = Margin(), np.asarray(values, np.float64)
    score = {i: float(relevance_dot[i]) for i in range(len(values)) if usable[i]}
    stands = margin.top(score, keep - 1, EXACT)
    others = [i for i in score if i not in stands]
    joins, changed = {}, {}
    if others:
        last = max(others)
        joins = {i: last for i in others if i != last}
        changed = {last: sum(sizes[i] * values[i] for i in others) / sum(sizes[i] for i in others)}
        stands = [*stands, last]
    return *finish(values, filled(stands, keep, valid, usable), joins, changed), margin.smallest


def apet(values, valid, usable, keep, sizes, *, drawn, basis=10):
    margin, values = Margin(), np.asarray(values, np.float64)
    tokens = [i for i in range(len(values)) if usable[i]]
    basis = min(basis, keep - 1)
    x = {i: values[i] for i in tokens}
    longest = max((np.linalg.norm(row) for row in x.values()), default=1.0)
    picks = [tokens[int(drawn * len(tokens))]] if basis and tokens else []
    while tokens and len(picks) < basis:
        apart = {i: min(np.sum((x[i] - x[j]) ** 2) for j in picks) for i in tokens}
        picks += margin.top(apart, 1, 0.3 / longest**2)
    error = {}
    for i in tokens:
        span = np.array([x[j] for j in picks]).reshape(len(picks), values.shape[1]).T
        # Of the basis, none: they come last, by index
        error[i] = -longest * (i + 1) if i in picks else np.linalg.norm(x[i] - span @ np.linalg.lstsq(span, x[i])[0])
    stands = margin.top(error, keep, 0.3 / longest)
    if len(tokens) <= keep:
        return *finish(values, filled(stands, keep, valid, usable), {}), margin.smallest
    hosts = margin.top(error, keep - basis, 0.3 / longest)
    key, joins, changed = dict(zip(tokens, unit([x[i] for i in tokens]), strict=True)), {}, {}
    for i in tokens:
        if i not in stands:
            joins[i] = margin.top({j: float(key[i] @ key[j]) for j in hosts}, 1)[0]
    for host in set(joins.values()):
        group = [host, *(i for i in joins if joins[i] == host)]
        changed[host] = sum(sizes[i] * values[i] for i in group) / sum(sizes[i] for i in group)
    for place, pick in zip(sorted(set(stands) - set(hosts)), picks, strict=True):
        changed[place] = values[pick]
    return *finish(values, stands, joins, changed), margin.smallest


def prunesid(values, valid, usable, keep, sizes, *, class_attention, tower_features):
    margin, n = Margin(), keep + 1
    tokens = [i for i in range(len(values)) if usable[i]]
    attention = {i: float(class_attention[i]) for i in tokens}
    for i, j in itertools.pairwise(sorted(attention, key=lambda i: (-attention[i], i))):
        margin.note(EXACT * (attention[i] - attention[j]))
    if len(tokens) <= keep:
        return *finish(values, filled(tokens, keep, valid, usable), {}), margin.smallest
    told = 1 / (1 + np.exp(-np.asarray(tower_features, np.float64)[tokens]))
    components = max(1, n // 4)
    _, spread, loading = np.linalg.svd((told - told.mean(1, keepdims=True)).T, full_matrices=False)
    members = {c: [] for c in range(components)}
    for place, i in enumerate(tokens):
        members[margin.top({c: abs(loading[c, place]) for c in range(components)}, 1, 0.01)[0]].append(i)
    for larger, smaller in itertools.pairwise(spread[: components + 1]):  # close ones mix in float32
        margin.note(0.01 * (larger - smaller) / spread[0])

    key = dict(zip(tokens, unit(np.asarray(tower_features, np.float64)[tokens]), strict=True))
    threshold = n / 32 * np.mean([key[i] @ key[j] for i, j in itertools.combinations(tokens, 2)])
    lines, distinct = {}, {}
    for c, group in members.items():
        line, left = [], sorted(group, key=lambda i: (-attention[i], i))
        while left:
            line.append(left.pop(0))
            for i in left:
                margin.note((key[i] @ key[line[-1]] - threshold) * 0.1)
            left = [i for i in left if key[i] @ key[line[-1]] <= threshold]
        distinct[c] = len(line)
        lines[c] = line + sorted(set(group) - set(line), key=lambda i: (-attention[i], i))

    most = {c: min(5 * math.ceil(n / 64), distinct[c]) for c in members}
    while sum(most.values()) < n:
        most = {c: min(most[c] + 1, len(members[c])) for c in members}
    quota = {c: min(1, len(members[c])) for c in members}
    more, so_far, before = keep - sum(quota.values()), 0, 0
    for c in members:
        so_far += distinct[c]
        until = round(fractions.Fraction(so_far * more, sum(distinct.values())))  # half to even
        quota[c] = min(quota[c] + until - before, most[c])
        before = until
    for c in sorted(members, key=lambda c: (-distinct[c], c)):
        quota[c] += min(most[c] - quota[c], keep - sum(quota.values()))
    stands = [i for c in members for i in lines[c][: quota[c]]]
    return *finish(values, stands, {}), margin.smallest
