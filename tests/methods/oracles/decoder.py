"""Controls and methods between decoder layers in float64 NumPy and plain loops, from their descriptions alone.

Each oracle takes one set and gives the indices, the assignment (-1: dropped) and how clearly its least clear choice was
made: the difference over what float32 may blur. Above 1 no tie decides.
"""

import itertools
import math

import numpy as np

BLUR = 2e-5  # of a score in float32, relative to the largest


def usable(valid, *told):
    """Tokens that are valid, and finite in all that is told about them."""
    good = [bool(v) for v in valid]
    for array in told:
        array = np.asarray(array, np.float64)
        good = [g and bool(np.isfinite(array[i]).all()) for i, g in enumerate(good)]
    return good


class Clear:
    """Remembers the least clear choice."""

    def __init__(self):
        self.margin = math.inf

    def compare(self, better, worse, scale):
        self.margin = min(self.margin, abs(better - worse) / (BLUR * scale) if scale > 0 else math.inf)

    def top(self, scores, count):
        """The `count` candidates of highest score (a dict), best first; of equals the lower index."""
        order = sorted(scores, key=lambda i: (-scores[i], i))
        if 0 < count < len(order):
            scale = max(abs(s) for s in scores.values())
            self.compare(scores[order[count - 1]], scores[order[count]], scale)
        return order[:count]


def fill(chosen, valid, good, keep):
    """What is no number, then padding, where there is not enough else."""
    n = len(valid)
    rest = [i for i in range(n) if valid[i] and not good[i]] + [i for i in range(n) if not valid[i]]
    return sorted(chosen + rest[: keep - len(chosen)])


def alone(indices, n):
    """The assignment of pruning."""
    assignment = [-1] * n
    for row, i in enumerate(indices):
        assignment[i] = row
    return assignment


def by_score(values, valid, score, keep, told=()):
    good, clear = usable(valid, values, *told), Clear()
    scores = {i: score(i) for i in range(len(valid)) if good[i]}
    indices = fill(clear.top(scores, min(keep, len(scores))), valid, good, keep)
    return indices, alone(indices, len(valid)), clear.margin


def norm(values, valid, keep):
    values = np.asarray(values, np.float64)
    return by_score(values, valid, lambda i: math.sqrt(sum(v * v for v in values[i])), keep)


def v2drop(values, valid, previous, keep):
    change = np.asarray(values, np.float64) - np.asarray(previous, np.float64)
    return by_score(values, valid, lambda i: math.sqrt(sum(v * v for v in change[i])), keep, [previous])


def attended(values, valid, attention, keep):
    """FastV and PyramidDrop. Their score is not computed but given: no two different ones are too close."""
    indices, assignment, _ = by_score(values, valid, lambda i: float(attention[i]), keep, [attention])
    return indices, assignment, math.inf


def uniform(values, valid, keep):
    n, good = len(valid), usable(valid, values)
    there = [i for i in range(n) if good[i]]
    side = math.isqrt(n)
    if len(there) < keep:
        chosen = there
    elif len(there) == n == side * side:
        lines, chosen = max(round(math.sqrt(keep)), math.ceil(keep / side)), []
        for line in range(lines):
            count = keep * (line + 1) // lines - keep * line // lines
            y = math.floor((line + 0.5) * side / lines)
            chosen += [y * side + math.floor((x + 0.5) * side / count) for x in range(count)]
    else:
        chosen = [there[math.floor((k + 0.5) * len(there) / keep)] for k in range(keep)]
    indices = fill(chosen, valid, good, keep)
    return indices, alone(indices, n), math.inf


def pooling(values, valid, keep):
    n, good = len(valid), usable(valid, values)
    there = [i for i in range(n) if good[i]]
    side, kept = math.isqrt(n), math.isqrt(keep)
    if len(there) < keep:
        indices = fill(there, valid, good, keep)
        return indices, alone(indices, n), math.inf
    if len(there) == n == side * side and kept * kept == keep and side % kept == 0:
        s = side // kept
        groups = [
            [(a * s + y) * side + b * s + x for y in range(s) for x in range(s)]
            for a in range(kept)
            for b in range(kept)
        ]
        middle = [group[(s - 1) // 2 * s + (s - 1) // 2] for group in groups]
    else:
        groups = [[] for _ in range(keep)]
        for place, i in enumerate(there):
            groups[place * keep // len(there)].append(i)
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
        middle = [group[(len(group) - 1) // 2] for group in groups]
    assignment = [-1] * n
    for row, group in enumerate(groups):
        for i in group:
            assignment[i] = row
    return middle, assignment, math.inf


def dart(values, valid, keys, text_keys, text_hidden, text_valid, keep):
    n, clear = len(valid), Clear()
    values, keys, text_keys, text_hidden = (np.asarray(a, np.float64) for a in (values, keys, text_keys, text_hidden))
    good, words = usable(valid, values, keys), usable(text_valid, text_keys, text_hidden)

    def longest(rows, which, count):
        lengths = {i: float(sum(abs(k) for k in rows[i])) for i in range(len(rows)) if which[i]}
        order = clear.top(lengths, min(count, len(lengths)))
        for first, second in itertools.pairwise(order):
            clear.compare(lengths[first], lengths[second], max(lengths.values()))
        return order

    images, texts = longest(keys, good, min(4, keep)), longest(text_keys, words, 4)
    pivots = [values[i] for i in images] + [text_hidden[t] for t in texts]
    taken = list(images)
    for place, pivot in enumerate(pivots):
        rest = keep - min(4, keep)
        quota = rest // len(pivots) + (1 if place < rest % len(pivots) else 0)
        free = [i for i in range(n) if good[i] and i not in taken]
        unlike = {i: -float(pivot @ values[i]) / (np.linalg.norm(pivot) * np.linalg.norm(values[i])) for i in free}
        taken += clear.top(unlike, min(quota, len(free)))
    indices = fill(taken, valid, good, keep)
    return indices, alone(indices, n), clear.margin


def sparsevlm_split(n, keep):
    """Kept and means: the most kept for which a tenth of 30 % of the pruned is missing; at most half are means."""
    for kept in range(keep, -1, -1):
        means = int((int((n - kept) * 0.3) + 1) / 10) + 1
        if kept + means <= keep:
            break
    means = min(means, keep // 2)
    return keep - means, means


def _raters(values, good, text, words, clear):
    share = dict.fromkeys(words, 0.0)
    for i, there in enumerate(good):
        if there:
            logits = np.array([float(values[i] @ text[t]) for t in words])
            weights = np.exp(logits - logits.max())
            for t, weight in zip(words, weights / weights.sum(), strict=True):
                share[t] += weight / sum(good)
    average = sum(share.values()) / len(words)
    if len(words) > 1:
        for t in words:
            clear.compare(share[t], average, 1)
    return [t for t in words if share[t] > average] or words


def sparsevlm_plus(values, valid, attention, text, text_valid, keep):
    n, clear = len(valid), Clear()
    values, attention, text = (np.asarray(a, np.float64) for a in (values, attention, text))
    words = [t for t, w in enumerate(usable(text_valid, text)) if w]
    good = usable(valid, values, attention[:, words].transpose(2, 0, 1))
    raters = _raters(values, good, text, words, clear)
    there = [i for i in range(n) if good[i]]
    looks = {head: float(sum(attention[head, t, i] for t in raters for i in there)) for head in range(len(attention))}
    heads = clear.top(looks, min(14, len(attention)))
    score = {i: float(sum(attention[head, t, i] for head in heads for t in raters)) for i in there}
    indices = fill(clear.top(score, min(keep, len(score))), valid, good, keep)
    return indices, alone(indices, n), clear.margin


def sparsevlm(values, valid, attention, text, text_valid, keep):
    n, clear = len(valid), Clear()
    values, attention, text = (np.asarray(a, np.float64) for a in (values, attention, text))
    words = [t for t, w in enumerate(usable(text_valid, text)) if w]
    good = usable(valid, values, attention[words].T)
    raters = _raters(values, good, text, words, clear)
    score = {i: sum(attention[t][i] for t in raters) / len(raters) for i in range(n) if good[i]}
    kept, means = sparsevlm_split(n, keep)
    order = clear.top(score, len(score))
    clear.top(score, min(kept, len(order)))
    winners, left = order[:kept], order[kept:]
    candidates = int((n - kept) * 0.3) + 1
    if means:
        clear.top({i: score[i] for i in left}, min(candidates, len(left)))
    points = sorted(left[:candidates])
    clusters = min(means, len(points))
    centres = _centres(values, points, means, clusters, clear) if clusters else []
    indices = fill(winners + centres, valid, good, keep)
    assignment = alone(indices, n)
    for i in points if centres else []:
        if i not in centres:
            away = {c: -_distance(values, i, c) for c in centres}
            assignment[i] = assignment[clear.top(away, 1)[0]]
    return indices, assignment, clear.margin


def _distance(values, i, j):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(values[i], values[j], strict=True)) / len(values[i]))


def _centres(values, points, near, clusters, clear):
    """Of the points, those that are dense and far from what is denser."""
    away = {i: {j: _distance(values, i, j) for j in points} for i in points}
    density = {}
    for i in points:
        nearest = sorted(away[i].values())[:near]
        density[i] = math.exp(-sum(d * d for d in nearest) / len(nearest))
    farthest = max(max(row.values()) for row in away.values())
    peak = {}
    for i in points:
        denser = [j for j in points if density[j] > density[i] or (density[j] == density[i] and j < i)]
        apart = min([away[i][j] for j in denser], default=farthest)
        peak[i] = apart * density[i]
    ranking = sorted(density.values())
    for low, high in itertools.pairwise(ranking):
        if high > low:  # or copies are equal, in float32 too, and go by index
            clear.compare(high, low, 0.01)  # a density is wrong by a few units in the last place
    return clear.top(peak, clusters)
