"""The figures as text: a table, the correlations, and in words whether rank predicted accuracy."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

from experiments.attention_rank.report import MEASURES, OUTCOMES, TOKENS, Rows, budgets, depth
from experiments.core.methods import BASELINE
from experiments.metrics.correlation import FEWEST, KINDS, least_telling
from experiments.metrics.rank import TOLERANCE
from experiments.reports import tables

# What the verdict rests on: one coefficient per budget, so that no other can be picked for its size.
DECISIVE = {"place": None, "tokens": "all", "measure": "effective_rank", "layer": None}
LEVEL = 0.05  # of p, not of the intervals: a bootstrap of a handful of points is too sure of itself
_CUTS = {None: "all", "decoder": "in the decoder", "input": "before it", "tower": "in the tower"}
_EXPLANATION = """\
{questions} questions about {scenes} held-out scenes; ± is half of a 95 % Wilson interval.

Rank: singular values of the attention output, as added to the residual stream, above {tolerance:g} of the largest. \
Entropy: of singular values divided by their sum, in nats; effective rank: its exponential (Roy and Vetterli 2007). In \
float64, per question; means over questions and over layers {first} to {last}, those behind every cut.

"all": of every token that is left, text too, as it is what later layers and the answer read. "visual": of the visual \
ones alone. The last layer, {unread}, is left out: only its last token's output is ever computed."""
_CAUTION = """\
Correlations across carved methods, with 95 % bootstrap intervals over methods; p by permuting methods. All budgets: \
each method's values less the mean of their budget, so that the budget itself explains nothing. The other measures of \
each layer are in results.json."""
_LITTLE = """\
What this can show is little: {count} methods, some of them variants of one another, on one model. Of {count} \
independent ones, only a coefficient above {least:.2f} in size differs from 0 at the 5 % level; intervals and p are \
not corrected for how many coefficients are looked at, and noise in accuracy pulls all of them towards 0. A \
correlation is no cause."""
_WORDS = {
    1: "the higher the effective rank, the higher the accuracy",
    -1: "the higher the effective rank, the LOWER the accuracy, against the paper's claim",
    0: "no relation that can be told from chance",
}
_HEADS = {
    frozenset({1}): "Effective rank predicted accuracy.",
    frozenset({-1}): "Effective rank predicted accuracy the wrong way round.",
    frozenset({0}): "Effective rank did not predict accuracy.",
}


def table(rows: Rows) -> str:
    """One line per method and budget; ranks are means over the layers behind the cut."""

    def measure(row: Mapping[str, Any], *, part: str, name: str) -> str:
        return f"{row['behind_cut'][part][name]:.{2 if name == 'entropy' else 1}f}"

    columns: list[tables.Column] = [
        ("method", operator.itemgetter("method")),
        ("visual tokens", lambda row: str(row["visual_tokens"])),
        ("accuracy", lambda row: tables.with_interval(row["accuracy"])),
        ("same answer", lambda row: tables.percent(row["same_answer"]["share"])),
    ]
    columns += [
        (f"{name.replace('_', ' ')}, {part}", functools.partial(measure, part=part, name=name))
        for part in TOKENS
        for name in MEASURES
    ]
    return tables.markdown(tables.cells(columns, rows))


def _figures(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "n/a"
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def correlation_table(correlations: Rows) -> str:
    """Every measure of the mean over layers; and of each layer and place what the verdict rests on."""
    cells: dict[tuple[str, ...], list[str]] = {}
    for found in sorted(correlations, key=lambda one: one["layer"] is not None):
        whole = found["layer"] is None and found["place"] is None
        if whole or all(found[key] == DECISIVE[key] for key in ("tokens", "measure")):
            name = (
                f"{found['measure'].replace('_', ' ')}, {found['tokens']}",
                f"{found['methods']} {_CUTS[found['place']]}",
                str(found["visual_tokens"] or "all budgets"),
                "mean" if found["layer"] is None else str(found["layer"]),
            )
            cells.setdefault(name, []).append(_figures(found))
    header = ["measure", "methods that cut", "visual tokens", "layer"]
    header += [f"{kind}, {outcome.replace('_', ' ')}" for outcome in OUTCOMES for kind in KINDS]
    return tables.markdown([header, *([*name, *own] for name, own in cells.items())])


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
    for place, words in list(_CUTS.items())[1:]:
        found = decisive(correlations, place)
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
    signs = [0 if one["p"] > LEVEL else 1 if one["value"] > 0 else -1 for one in found]
    lines = [
        f"At {one['visual_tokens']} visual tokens, {one['methods']} methods: Spearman {_figures(one)}, "
        f"p = {one['p']:.2g}: {_WORDS[sign]}."
        for one, sign in zip(found, signs, strict=True)
    ]
    head = _HEADS.get(frozenset(signs), "Effective rank predicted accuracy at some budgets and not at others.")
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
    count, questions, unread = decisive(correlations)[0]["methods"], rows[0]["accuracy"]["of"], depth(rows)
    layers = {"first": first, "last": unread - 1, "unread": unread}
    explanation = _EXPLANATION.format(questions=questions, scenes=scenes, tolerance=TOLERANCE, **layers)
    parts = [table(rows), explanation, correlation_table(correlations), _CAUTION]
    if count >= FEWEST:
        parts.append(_LITTLE.format(count=count, least=least_telling(count)))
    return "\n\n".join([*parts, *filter(None, (_above_vanilla(rows), verdict(correlations), by_place(correlations)))])
