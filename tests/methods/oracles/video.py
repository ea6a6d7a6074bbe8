"""Methods for video in float64 NumPy and plain loops, written from their descriptions and not from the package.

Each takes one clip: values [N, D], valid [N] bool, the grid (frames, rows, columns) and K. It gives indices, of methods
that merge the assignment too, and the smallest difference that a decision hung on.
"""

import itertools
import math

import numpy as np


class Margin:
    def __init__(self):
        self.smallest = math.inf

    def note(self, *differences):
        self.smallest = min([self.smallest, *(abs(float(d)) for d in differences if d != 0)])


def unit(row):
    return row / (np.linalg.norm(row) or 1.0)


def laid_out(values, valid, grid):
    """For each cell its token, and whether that is finite."""
    values = np.asarray(values, np.float64)
    tokens = [i for i in range(len(values)) if valid[i]]
    frames, places = grid[0], grid[1] * grid[2]
    cells = [[tokens[t * places + p] for p in range(places)] for t in range(frames)]
    good = {i: bool(np.isfinite(values[i]).all()) for i in tokens}
    return values, cells, good


def ranked(margin, valid, good, keep, *groups):
    """The first K: each group, a dictionary of scores, from the highest down; then what is not finite, then padding."""
    line = []
    for group in groups:
        order = sorted((i for i in group if good[i]), key=lambda i: (-group[i], i))
        cut = keep - len(line)
        if 0 < cut < len(order):
            margin.note(group[order[cut - 1]] - group[order[cut]])
        line += order
    line += [i for i in range(len(valid)) if valid[i] and not good[i]]
    line += [i for i in range(len(valid)) if not valid[i]]
    return sorted(line[:keep])


def evs(values, valid, grid, keep):
    values, cells, good = laid_out(values, valid, grid)
    margin, changed = Margin(), {}
    for before, now in itertools.pairwise(cells):
        for i, j in zip(now, before, strict=True):
            changed[i] = 1 - unit(values[i]) @ unit(values[j]) if good[i] and good[j] else 0.0
    return ranked(margin, valid, good, keep, dict.fromkeys(cells[0], 255.0), changed), margin.smallest


def everest(values, valid, grid, keep):
    values, cells, good = laid_out(values, valid, grid)
    margin, moved = Margin(), {}
    for t, now in enumerate(cells):
        for p, i in enumerate(now):
            here, there = (i, cells[t - 1][p]) if t else (cells[1][p], cells[0][p])
            moved[i] = np.linalg.norm(values[here] - values[there]) if good[here] and good[there] else 0.0
    scale = np.abs(values[[i for i in good if good[i]]]).max(initial=0)
    found = ranked(margin, valid, good, keep, moved)
    return found, margin.smallest / (scale or 1.0)


def vidcom2(values, valid, grid, keep):
    values, cells, good = laid_out(values, valid, grid)
    margin, frames, places = Margin(), grid[0], grid[1] * grid[2]
    everything = [i for i in good if good[i]]
    variance = np.array([np.mean((column - np.mean(column)) ** 2) for column in values[everything].T])
    channels = np.argsort(variance, kind="stable")
    half = max(1, len(channels) // 2)
    margin.note((variance[channels[half]] - variance[channels[half - 1]]) / variance.max())
    points = {i: unit(values[i][sorted(channels[:half])]) for i in everything}
    video = np.mean([points[i] for i in everything], axis=0)

    def likeness(i, centre):
        square = np.sum((points[i] - centre) ** 2)
        return sum(math.exp(-square / (2 * 2.0**power)) for power in range(-3, 2))

    to_video = {i: likeness(i, video) for i in everything}
    both, apart = {}, []
    for now in cells:
        mine = [i for i in now if good[i]]
        centre = np.mean([points[i] for i in mine], axis=0)
        both |= {i: to_video[i] + likeness(i, centre) for i in mine}
        apart.append(-np.mean([to_video[i] for i in mine]))
    odds = [math.exp((a - max(apart)) / 0.01) for a in apart]
    share = [odd / sum(odds) for odd in odds]
    chosen, rest = {}, {}
    for now, p in zip(cells, share, strict=True):
        exact = min(keep / (frames * places) * (1 + p - 1 / frames), 1.0) * places
        margin.note((exact % 1 - 0.5) or 1e-12)
        order = sorted((i for i in now if good[i]), key=lambda i: (both[i], i))
        budget = min(max(round(exact), 1), places)
        if budget < len(order):
            margin.note(both[order[budget]] - both[order[budget - 1]])
        chosen |= {i: -both[i] for i in order[:budget]}
        rest |= {i: -both[i] for i in order[budget:]}
    return ranked(margin, valid, good, keep, chosen, rest), margin.smallest


def token_dynamics(values, valid, keep, draws, iterations=50):
    """With draws in [0, 1), one for each cluster; indices, assignment, and the margin."""
    values, margin = np.asarray(values, np.float64), Margin()
    good = {i: bool(np.isfinite(values[i]).all()) for i in range(len(values)) if valid[i]}
    tokens = [i for i in good if good[i]]
    points = {i: unit(values[i]) for i in tokens}
    centres = []
    for draw in draws:
        weights = [min([np.sum((points[i] - c) ** 2) for c in centres], default=1.0) + 1e-6 for i in tokens]
        at, target = 0.0, float(draw) * sum(weights)
        for i, weight in zip(tokens, weights, strict=True):  # noqa: B007
            margin.note(at - target, (at + weight - target))
            at += weight
            if at > target:
                break
        centres.append(points[i])
    joined = None
    for _ in range(iterations):
        like = {i: [points[i] @ unit(c) for c in centres] for i in tokens}
        now = {i: int(np.argmax(like[i])) for i in tokens}
        if now == joined:
            break
        joined = now
        for i in tokens:
            if keep > 1:
                first, second = sorted(like[i])[:-3:-1]
                margin.note(first - second)
        for k in range(keep):
            mine = [points[i] for i in tokens if joined[i] == k]
            centres[k] = np.mean(mine, axis=0) if mine else centres[k]
    clusters = [[i for i in tokens if joined[i] == k] for k in range(keep)]
    middle = {k: mine[(len(mine) - 1) // 2] for k, mine in enumerate(clusters) if mine}
    alone = {i: 0.0 for i in tokens if i not in middle.values()}
    indices = ranked(margin, valid, good, keep, dict.fromkeys(middle.values(), 1.0), alone)
    row = {i: k for k, i in enumerate(indices)}
    assignment = [row.get(i, row[middle[joined[i]]] if i in joined else -1) for i in range(len(values))]
    return indices, assignment, margin.smallest
