"""The figures as text: a table, the correlations, and in words whether rank predicted accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.attention_rank.report import MEASURES, OUTCOMES, budgets
from experiments.metrics.correlation import FEWEST, KINDS, least_telling
from experiments.metrics.rank import TOLERANCE
from experiments.metrics.summary import BASELINE

# What the verdict rests on: one coefficient per budget, so that no other can be picked for its size.
DECISIVE = {"place": None, "tokens": "all", "measure": "effective_rank", "layer": None}
_CUTS = {None: "all", "decoder": "in the decoder", "input": "before it", "tower": "in the tower"}
LEVEL = 0.05  # of p, not of the intervals: a bootstrap of a handful of points is too sure of itself
Rows = Sequence[Mapping[str, Any]]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, in columns also as plain text; the first to the left, the others to the right."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for cells in (header, rule, *rows):
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def table(rows: Rows) -> str:
    """One line per method and budget; ranks are means over the layers behind the cut."""
    header = ["method", "visual tokens", "accuracy", "same answer"]
    header += [f"{name.replace('_', ' ')}, {part}" for part in rows[0]["behind_cut"] for name in MEASURES]
    cells = []
    for row in rows:
        accuracy = row["accuracy"]
        half = 50 * (accuracy["high"] - accuracy["low"])
        figures = [
            f"{measures[name]:.{2 if name == 'entropy' else 1}f}"
            for measures in row["behind_cut"].values()
            for name in MEASURES
        ]
        shares = [f"{100 * accuracy['share']:.1f} % ± {half:.1f}", f"{100 * row['same_answer']['share']:.1f} %"]
        cells.append([row["method"], str(row["visual_tokens"]), *shares, *figures])
    return markdown(header, cells)


def _figures(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "n/a"
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def correlation_table(correlations: Rows) -> str:
    """Every measure of the mean over layers; and of each layer and place what the verdict rests on."""
    columns = [(outcome, kind) for outcome in OUTCOMES for kind in KINDS]
    cells: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    for found in sorted(correlations, key=lambda one: one["layer"] is not None):
        whole = found["layer"] is None and found["place"] is None
        if whole or all(found[key] == DECISIVE[key] for key in ("tokens", "measure")):
            budget = "all budgets" if found["visual_tokens"] is None else str(found["visual_tokens"])
            layer = "mean" if found["layer"] is None else str(found["layer"])
            methods = f"{found['methods']} {_CUTS[found['place']]}"
            name = (f"{found['measure'].replace('_', ' ')}, {found['tokens']}", methods, budget, layer)
            cells.setdefault(name, {})[found["with"], found["kind"]] = _figures(found)
    header = ["measure", "methods that cut", "visual tokens", "layer"]
    header += [f"{kind}, {outcome.replace('_', ' ')}" for outcome, kind in columns]
    return markdown(header, [[*name, *(own[column] for column in columns)] for name, own in cells.items()])


def decisive(correlations: Rows, place: str | None = None) -> list[Mapping[str, Any]]:
    """The correlations that the verdict rests on, one for each budget; or the same of the methods of one place."""
    wanted = DECISIVE | {"place": place, "with": "accuracy", "kind": "Spearman"}
    return [
        found
        for found in correlations
        if found["visual_tokens"] is not None and all(found[key] == value for key, value in wanted.items())
    ]


def by_place(correlations: Rows) -> str:
    """The same within each place, as where methods cut may explain rank and accuracy both."""
    lines = []
    for place, words in _CUTS.items():
        found = [] if place is None else decisive(correlations, place)
        if found and all(one["value"] is not None for one in found):
            figures = "; ".join(f"{_figures(one)}, p = {one['p']:.2g}, at {one['visual_tokens']}" for one in found)
            lines.append(f"Among the {found[0]['methods']} methods that cut {words}: {figures} visual tokens.")
    return "\n".join(lines)


def verdict(correlations: Rows) -> str:
    """Whether rank predicted accuracy, in words."""
    found = decisive(correlations)
    if any(one["value"] is None for one in found):
        return (
            f"Whether rank predicts accuracy cannot be said: that takes {FEWEST} methods or more that differ in both."
        )
    lines, signs = [], set()
    for one in found:
        sign = 0 if one["p"] > LEVEL else 1 if one["value"] > 0 else -1
        signs.add(sign)
        if sign > 0:
            word = "the higher the effective rank, the higher the accuracy"
        elif sign < 0:
            word = "the higher the effective rank, the LOWER the accuracy, against the paper's claim"
        else:
            word = "no relation that can be told from chance"
        figures = f"Spearman {_figures(one)}, p = {one['p']:.2g}"
        lines.append(f"At {one['visual_tokens']} visual tokens, {one['methods']} methods: {figures}: {word}.")
    if signs == {1}:
        head = "Effective rank predicted accuracy."
    elif signs == {-1}:
        head = "Effective rank predicted accuracy the wrong way round."
    elif signs == {0}:
        head = "Effective rank did not predict accuracy."
    else:
        head = "Effective rank predicted accuracy at some budgets and not at others."
    return "\n".join([head, *lines])


def _above_vanilla(rows: Rows) -> str:
    """How many methods lost effective rank at all."""
    part, name = DECISIVE["tokens"], DECISIVE["measure"]
    (vanilla,) = (row["behind_cut"][part][name] for row in rows if row["method"] == BASELINE)
    counts = [
        f"{sum(row['behind_cut'][part][name] < vanilla for row in own)} of {len(own)} at {kept}"
        for kept, own in budgets(rows).items()
    ]
    return f"Methods whose effective rank is below vanilla's {vanilla:.1f}: {', '.join(counts)} visual tokens."


def text(rows: Rows, correlations: Rows, *, scenes: int, first: int) -> str:
    """Everything that the command prints."""
    count, questions = decisive(correlations)[0]["methods"], rows[0]["accuracy"]["of"]
    layers = len(next(iter(rows[0]["layers"].values()))["rank"])
    notes = [
        f"{questions} questions about {scenes} held-out scenes; ± is half of a 95 % Wilson interval.",
        "Rank: singular values of the attention output, as added to the residual stream, above "
        f"{TOLERANCE:g} of the largest. Entropy: of singular values divided by their sum, in nats; effective rank: its "
        "exponential (Roy and Vetterli 2007). In float64, per question; means over questions and over layers "
        f"{first} to {layers - 1}, those behind every cut.",
        '"all": of every token that is left, text too, as it is what later layers and the answer read. "visual": of '
        f"the visual ones alone. The last layer, {layers}, is left out: only its last token's output is ever computed.",
    ]
    caution = [
        "Correlations across carved methods, with 95 % bootstrap intervals over methods; p by permuting methods. "
        "All budgets: each method's values less the mean of their budget, so that the budget itself explains nothing. "
        "The other measures of each layer are in results.json.",
    ]
    if count >= FEWEST:
        caution.append(
            f"What this can show is little: {count} methods, some of them variants of one another, on one model. Of "
            f"{count} independent ones, only a coefficient above {least_telling(count):.2f} in size differs from 0 at "
            "the 5 % level; intervals and p are not corrected for how many coefficients are looked at, and noise in "
            "accuracy pulls all of them towards 0. A correlation is no cause."
        )
    said = [part for part in (_above_vanilla(rows), verdict(correlations), by_place(correlations)) if part]
    return "\n\n".join([table(rows), *notes, correlation_table(correlations), *caution, *said])
