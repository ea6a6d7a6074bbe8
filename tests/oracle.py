"""The eight steps in float64 NumPy and plain loops, written from the method's description and not from the package."""

import fractions
import math

import numpy as np


def information(tokens):
    """C_i = sum_j |U_ij| S_j by the singular value decomposition in float64."""
    u, s, _ = np.linalg.svd(np.asarray(tokens, np.float64), full_matrices=False)
    return np.abs(u * s).sum(axis=1)


def points(scores):
    """N for the highest score down to 1 for the lowest; of equals the earlier one is better."""
    ranking = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    result = [0] * len(scores)
    for place, i in enumerate(ranking):
        result[i] = len(scores) - place
    return result


def carve(tokens, attention, kept, *, weight="0.5", oversample=1.5, contribution=None):
    """One set of finite tokens [N, D]; `weight` as a decimal string. Gives tokens, indices, assignment."""
    tokens = np.asarray(tokens, np.float64)
    n = len(tokens)
    if kept >= n:
        return tokens, list(range(n)), list(range(n))
    weight = fractions.Fraction(weight)
    contribution = information(tokens) if contribution is None else contribution
    by_attention, by_information = points([float(a) for a in attention]), points([float(c) for c in contribution])
    score = [weight * a + (1 - weight) * c for a, c in zip(by_attention, by_information, strict=True)]

    ranking = sorted(range(n), key=lambda i: (-score[i], i))
    survivors = ranking[: min(n, math.floor(oversample * kept))]
    set_a = sorted(survivors[: len(survivors) // 2])
    set_b = sorted(survivors[len(survivors) // 2 :])

    unit = [row / (np.linalg.norm(row) or 1.0) for row in tokens]
    best = {}
    for b in set_b:
        similarity, partner = -math.inf, None
        for a in set_a:
            s = float(unit[a] @ unit[b])
            if s > similarity:
                similarity, partner = s, a
        best[b] = (similarity, partner)
    merging = sorted(set_b, key=lambda b: (-best[b][0], b))[: len(survivors) - kept]

    indices = sorted(set(survivors) - set(merging))
    rows, assignment = [], [-1] * n
    for row, i in enumerate(indices):
        group = [i] + [b for b in merging if best[b][1] == i]
        rows.append(sum(tokens[j] for j in group) / len(group))
        for j in group:
            assignment[j] = row
    return np.array(rows), indices, assignment


def decaying(rng, n, d, *, power=1.0, spread=0.5, noise=1e-6):
    """Tokens with singular values near j^-power, rows of different norm, and a little noise."""
    rank = min(n, d)
    left = np.linalg.qr(rng.normal(size=(n, rank)))[0]
    right = np.linalg.qr(rng.normal(size=(d, rank)))[0]
    spectrum = np.arange(1, rank + 1, dtype=np.float64) ** -power
    tokens = np.exp(spread * rng.normal(size=(n, 1))) * ((left * spectrum) @ right.T)
    return (tokens + noise * rng.normal(size=(n, d))).astype(np.float32)
