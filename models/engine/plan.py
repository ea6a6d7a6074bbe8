"""Schedules of cuts: where visual tokens are shortened, by which compressor, to how many.

A schedule is a tuple of cuts `(place, compressor, keep)`. Places are "tower" (inside the vision tower or on its output,
before the projector), "input" (before decoder layer 0) and a decoder layer (the cut happens at its entry, on the output
of the layer before and with that layer's attention). Everything here is hashable, and static in a compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from models.engine.notation import DEFAULTS, FORM, INPUT, OPTIONS, TOWER, Cut, named, read
from tokencarve_jax import Compressor
from tokencarve_jax import plan as count

TOKENCARVE_LAYER = 2  # the paper's choice for LLaVA-1.5, as in its released code
_READ_IN_TOWER = ("class_attention", "global_attention", "middle_attention", "tower_keys", "tower_features")
OF_TOWER = (*_READ_IN_TOWER, "projector", "key")
_OF_INPUT = (*OF_TOWER, "text", "text_valid", "text_relevance", "relevance", "relevance_dot")
_OF_BLOCK = ("tower_keys",)
Schedule = tuple[Cut, ...]
Carve = Any  # None, a keep, one cut or a tuple of them: Cut, (place, name or Compressor, keep) or text


@dataclasses.dataclass(frozen=True)
class Plan:
    """Cuts with counts, in the order in which they happen.

    Attributes:
      cuts: those that drop something.
      images: how many stretches of equal length a row's visual tokens are, one per image; None where images share them.
    """

    cuts: Schedule = ()
    images: int | None = 1

    def at(self, place: int | str) -> Cut | None:
        """The cut at a place, if there is one."""
        return next((cut for cut in self.cuts if cut.place == place), None)

    def reads(self) -> tuple[tuple[str, int], ...]:
        """Names and layers of the evidence from the tower that the cuts declare."""
        found = {(name, cut.compressor.tower_layer) for cut in self.cuts for name in cut.compressor.evidence}
        return tuple(sorted((name, layer) for name, layer in found if name in _READ_IN_TOWER))

    def asks(self, *names: str) -> bool:
        """Whether a cut after the tower declares one of these kinds of evidence."""
        return any(set(names) & {*cut.compressor.evidence} for cut in self.cuts if cut.place != TOWER)


def parse(carve: Carve, *, num_layers: int) -> Schedule:
    """Check a schedule.

    Args:
      carve: None (no cut), a keep (TokenCarve at layer 2), a cut, or a tuple of cuts: each a `Cut`, or `(place,
        compressor, keep)` with the compressor by its registered name or as an object, or text as on command lines.
      num_layers: of the decoder.

    Returns:
      Cuts in the order in which they happen.

    Raises:
      ValueError, TypeError: what is wrong, and what was expected.
    """
    if carve is None:
        return ()
    if not isinstance(carve, bool) and (hasattr(carve, "__index__") or hasattr(carve, "__float__")):
        carve = ((TOKENCARVE_LAYER, "tokencarve", carve),)
    elif isinstance(carve, str):
        carve = tuple(carve.split())
    elif isinstance(carve, Cut) or (_is_triple(carve) and not isinstance(carve[2], (str, tuple, list, Cut))):
        carve = (carve,)  # one cut, and no tuple of three
    if not isinstance(carve, (tuple, list)):
        raise TypeError(
            f"carve is {carve!r}; expected None, a keep such as 0.222 or 128, or cuts: (place, compressor, keep) or "
            f"{FORM}, one or a tuple of them"
        )
    cuts = tuple(_cut(cut, num_layers) for cut in carve)
    order = [_order(cut.place) for cut in cuts]
    if sorted(set(order)) != order:
        places = [cut.place for cut in cuts]
        raise ValueError(f"places of the cuts are {places}; expected each once, in the order tower, input, layers")
    return cuts


def for_family(schedule: Schedule, family: str, *, evidence: Collection[str], axes: int) -> Schedule:
    """The cuts of a schedule as a family of models carries them out.

    Where positions have rows and columns (M-RoPE), survivors keep their own unless a cut says "median": numbers
    without gaps would say that they stand elsewhere.

    Args:
      schedule: from `parse`.
      family: its `model_type`, for messages.
      evidence: names that it has.
      axes: of its rotary positions.

    Raises:
      ValueError: a cut needs evidence that the family has not, or asks for positions without gaps on several axes.
    """
    found = []
    for cut in schedule:
        if missing := [name for name in cut.compressor.required if name not in evidence]:
            raise ValueError(
                f"cut {cut}: {cut.compressor.name} needs {', '.join(missing)}, which {family} models do not have"
            )
        if axes > 1 and cut.positions == "renumbered":
            raise ValueError(
                f"cut {cut}: positions of {family} models have {axes} axes and cannot be renumbered; they are kept"
            )
        found.append(dataclasses.replace(cut, positions="kept") if axes > 1 and cut.renumbers else cut)
    return tuple(found)


def _order(place: int | str) -> int:
    return place if isinstance(place, int) else {TOWER: -1, INPUT: 0}[place]


def _is_triple(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 3


def _cut(cut: Any, num_layers: int) -> Cut:
    if isinstance(cut, str):
        cut = read(cut)
    if not isinstance(cut, Cut):
        if not _is_triple(cut):
            raise TypeError(f"a cut of the schedule is {cut!r}; expected (place, compressor, keep) or {FORM}")
        place, compressor, keep = cut
        try:
            cut = Cut(place, named(compressor) if isinstance(compressor, str) else compressor, keep)
        except ValueError as error:
            raise ValueError(f"cut {cut!r}: {error}") from error
    if not isinstance(cut.compressor, Compressor):
        raise TypeError(f"cut at {cut.place!r}: {cut.compressor!r} is neither a Compressor nor a registered name")
    _check_place(cut, num_layers)
    for name in dict.fromkeys(name for name, _ in OPTIONS.values()):
        value, choices = getattr(cut, name), [value for option, value in OPTIONS.values() if option == name]
        if value not in choices and value != DEFAULTS[name]:
            raise ValueError(f"cut {cut}: {name} must be {' or '.join(map(repr, choices))}, got {value!r}")
    if hasattr(cut.keep, "__index__") and not isinstance(cut.keep, bool):
        if cut.keep < 1:
            raise ValueError(f"cut {cut}: keep must be a fraction in (0, 1] or a count of at least 1")
    else:
        count(1, cut.keep)  # a fraction is checked before the number of visual tokens is known
    return cut


def _check_place(cut: Cut, num_layers: int) -> None:
    place, compressor = cut.place, cut.compressor
    if place not in (TOWER, INPUT):
        if isinstance(place, bool) or not isinstance(place, int) or not 1 <= place < num_layers:
            raise ValueError(
                f"cut {cut}: place must be 'tower', 'input' or a layer, an integer from 1 to {num_layers - 1}, the "
                "decoder's last"
            )
        if compressor.at == TOWER:
            raise ValueError(f"cut {cut}: {compressor.name} works in the blocks of the tower; its place is 'tower'")
        return
    known = _OF_INPUT if place == INPUT else _OF_BLOCK if compressor.at == TOWER else OF_TOWER
    if place == INPUT and compressor.at == TOWER:
        raise ValueError(f"cut {cut}: {compressor.name} works in the blocks of the tower; its place is 'tower'")
    if missing := [name for name in compressor.required if name not in known]:
        raise ValueError(f"cut {cut}: {compressor.name} needs {', '.join(missing)}, which is not known at {place!r}")


def resolve(schedule: Schedule, num_visual: int, *, images: int | None = 1) -> Plan:
    """Turn every keep into a count. Fractions are of `num_visual`, the tokens before the first cut.

    Cuts that keep everything are dropped: they are the identity.

    Args:
      schedule: from `parse`.
      num_visual: N, visual tokens of a row, all images together.
      images: `Prompt.images`. A cut with budgets per image keeps its share of each.

    Raises:
      ValueError: a cut keeps more than the one before it left, or has budgets per image where it is no longer known
        which token is of which image.
    """
    left, cuts, stretches = num_visual, [], images
    for cut in schedule if num_visual else ():  # a prompt without images has nothing to cut
        parts = 1
        if cut.scope == "image" or cut.place == TOWER:
            if stretches is None:
                raise ValueError(
                    f"cut {cut} has a budget for each image, but the tokens of a row's images stand together; "
                    "pack the prompt with per_image=True, and put no cut with a joint budget before this one"
                )
            parts = stretches
        kept = count(num_visual // parts, cut.keep).kept
        if kept * parts > left:
            raise ValueError(f"cut {cut} keeps {kept * parts} visual tokens, but only {left} are left there")
        if kept * parts < left:
            cuts.append(dataclasses.replace(cut, keep=kept))
            left = kept * parts
            stretches = stretches if parts == stretches else None
    return Plan(tuple(cuts), images)


def tokens_by_layer(cuts: Schedule, *, num_layers: int, num_visual: int) -> list[int]:
    """How many visual tokens each decoder layer sees.

    Args:
      cuts: with counts, as in a `Plan`; of one image, where budgets are for each.
      num_layers: of the decoder.
      num_visual: before the first cut.

    >>> cuts = resolve(parse(128, num_layers=32), 576).cuts
    >>> layers = tokens_by_layer(cuts, num_layers=32, num_visual=576)
    >>> layers[:3], sum(layers) / 32
    ([576, 576, 128], 156.0)
    """
    left = [num_visual] * num_layers
    for cut in cuts:
        first = cut.place if isinstance(cut.place, int) else 0
        left[first:] = [int(cut.keep)] * (num_layers - first)
    return left


def has_budgets_per_image(schedule: Schedule) -> bool:
    """Whether a cut needs prompts that give each image equally many slots of its own."""
    return any(cut.scope == "image" or cut.place == TOWER for cut in schedule)
