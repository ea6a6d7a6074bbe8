"""The greedy methods in float64 NumPy and plain loops, written from their descriptions and not from the package.

Each oracle takes one image, and gives the indices and how clearly the least clear step was decided: the distance of the
best score to the second best, over what float32 may blur. Above 1 no tie decides.
"""

import numpy as np


def usable(valid, *told):
    """Tokens that are valid and finite in all that is told about them."""
    good = [bool(v) for v in valid]
    for array in told:
        array = np.asarray(array, np.float64)
        for i in range(len(good)):
            good[i] = good[i] and bool(np.isfinite(array[i]).all())
    return good


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 0 else 0.0


def choose(valid, good, keep, blur, score_of):
    """`keep` steps; `score_of(taken)` gives the scores of the usable tokens, wrong in float32 by `blur` and 2e-5."""
    taken, margin = [], np.inf
    for _ in range(min(keep, sum(good))):
        scores = {v: s for v, s in score_of(taken).items() if v not in taken}
        order = sorted(scores, key=lambda v: (-scores[v], v))
        if len(order) > 1:
            best, second = scores[order[0]], scores[order[1]]
            margin = min(margin, (best - second) / (blur + 2e-5 * abs(best)))
        taken.append(order[0])
    rest = [i for i in range(len(good)) if valid[i] and not good[i]] + [i for i in range(len(good)) if not valid[i]]
    return sorted(taken + rest[: keep - len(taken)]), margin


def divprune(values, valid, keep):
    good = usable(valid, values)
    tokens = [i for i, yes in enumerate(good) if yes]
    apart = {(i, j): 1 - cosine(values[i], values[j]) for i in tokens for j in tokens}

    def score(taken):
        if not taken:  # the second-smallest distance, the smallest being that to itself
            return {v: min([apart[v, u] for u in tokens if u != v], default=0.0) for v in tokens}
        return {v: min(apart[v, u] for u in taken) for v in tokens}

    return choose(valid, good, keep, 3e-6, score)


def cdpruner(values, valid, keep, relevance=None):
    told = [values] if relevance is None else [values, relevance]
    good = usable(valid, *told)
    tokens = [i for i, yes in enumerate(good) if yes]
    r = dict.fromkeys(tokens, 1.0)
    if relevance is not None:
        raw = {i: float(relevance[i]) for i in tokens}
        low, high = min(raw.values(), default=0), max(raw.values(), default=0)
        if high > low:
            r = {i: (raw[i] - low + 1e-6) / (high - low) for i in tokens}
    kernel = {(i, j): r[i] * cosine(values[i], values[j]) * r[j] for i in tokens for j in tokens}
    return choose(valid, good, keep, 3e-6, lambda taken: determinantal(kernel, tokens, taken))


def determinantal(kernel, tokens, taken):
    """How much the determinant grows by each token: the Schur complement."""
    inside = np.array([[kernel[i, j] for j in taken] for i in taken]).reshape(len(taken), len(taken))
    scores = {}
    for v in tokens:
        cross = np.array([kernel[v, i] for i in taken])
        scores[v] = kernel[v, v] - (cross @ np.linalg.solve(inside, cross) if taken and v not in taken else 0.0)
    return scores


def otprune(values, valid, keep, gamma=0.01):
    good = usable(valid, values)
    tokens = [i for i, yes in enumerate(good) if yes]
    v = np.asarray(values, np.float64)[tokens]
    s = sum(np.outer(column, column) / (column @ column) for column in v.T)  # V V^T, channel by channel
    whole = np.eye(len(tokens)) + gamma * s @ s.T
    kernel = {(i, j): whole[p, q] for p, i in enumerate(tokens) for q, j in enumerate(tokens)}
    return choose(valid, good, keep, 3e-7, lambda taken: determinantal(kernel, tokens, taken))


def covering(valid, good, keep, covers, weight):
    """`covers[v]` is a list, how well token v covers each row."""
    tokens = list(covers)
    blur = 3e-7 * max([weight[v] * max(covers[v]) for v in tokens], default=0.0)

    def score(taken):
        rows = range(len(next(iter(covers.values()))))
        covered = [max([covers[u][row] for u in taken], default=0.0) for row in rows]
        covered = [max(0.0, c) for c in covered]
        return {v: weight[v] * sum(max(0.0, covers[v][row] - covered[row]) for row in rows) for v in tokens}

    return choose(valid, good, keep, blur, score)


def scope(values, valid, keep, class_attention, tower_features, alpha=1.0):
    good = usable(valid, values, class_attention, tower_features)
    tokens = [i for i, yes in enumerate(good) if yes]
    covers = {v: [cosine(tower_features[v], tower_features[u]) for u in tokens] for v in tokens}
    return covering(valid, good, keep, covers, {v: float(class_attention[v]) ** alpha for v in tokens})


def softmax(logits):
    powers = np.exp(np.asarray(logits) - max(logits))
    return powers / powers.sum()


def mmtok(values, valid, keep, text, text_valid, tower_features, tau_text=0.02, tau_vision=0.2, share=0.5):
    good = usable(valid, values, tower_features)
    tokens = [i for i, yes in enumerate(good) if yes]
    words = [t for t, yes in zip(text, usable(text_valid, text), strict=True) if yes]
    rows = [softmax([cosine(word, values[v]) / tau_text for v in tokens]) / len(words) for word in words if tokens]
    for u in tokens:
        alike = softmax([cosine(tower_features[u], tower_features[v]) / tau_vision for v in tokens])
        rows.append(share * alike / len(tokens))
    covers = {v: [row[place] for row in rows] for place, v in enumerate(tokens)}
    return covering(valid, good, keep, covers, dict.fromkeys(tokens, 1.0))


def zoo_prune(values, valid, keep, tower_features, projector, directions, h=0.01):
    """`projector` takes and gives one row in float64; `directions` of any length."""
    good = usable(valid, values, tower_features)
    tokens = [i for i, yes in enumerate(good) if yes]
    raw = {}
    for v in tokens:
        x, total = np.asarray(tower_features[v], np.float64), 0.0
        for u in np.asarray(directions, np.float64):
            u = u / np.linalg.norm(u)
            total += np.linalg.norm(projector(x + h * u) - projector(x - h * u)) / (2 * h)
        raw[v] = total / len(directions)
    low, high = min(raw.values(), default=0), max(raw.values(), default=0)
    alike = high - low <= 1e-3 * high
    s = {v: 1.0 if alike else (raw[v] - low) / (high - low + 1e-8) for v in tokens}
    apart = {(i, j): 1 - cosine(values[i], values[j]) for i in tokens for j in tokens}
    return choose(
        valid,
        good,
        keep,
        2e-5,
        lambda taken: {v: s[v] * min([apart[v, u] for u in taken], default=1.0) for v in tokens},
    )
